package topology

import "fmt"

// airPrefix begins the names of the nodes that [Topology.Air] adds.
const airPrefix = "air-"

// Air is the topology with each Wi-Fi link replaced by what it is made of: a node with two simulated radios, an access
// point and a station that is joined to it over the air by four-address frames, each in a bridge with the card that leads
// to one end of the link. The figures of the link stay those of the first part, from a to the node; the second one has the
// same rate. t itself is not changed, but its nodes are those of the result.
func (t *Topology) Air() *Topology {
	out := *t
	out.Links = nil
	for _, l := range t.Links {
		if !l.WiFi {
			out.Links = append(out.Links, l)
			continue
		}
		air := &Node{Name: airPrefix + l.Name, Kind: Plain, Board: "x86-64", Memory: 160, CPUs: 1, Backend: QEMU, Programs: []string{airScript(l.Name)}}
		first, second := *l, *l
		second.Name, second.WiFi = l.Name+"-b", false
		first.WiFi = false
		first.Ends = [2]*Port{l.Ends[0], {Node: air, Name: "ap", Device: "eth0"}}
		second.Ends = [2]*Port{{Node: air, Name: "sta", Device: "eth1"}, l.Ends[1]}
		for _, part := range []*Link{&first, &second} {
			part.Ends[0].Link, part.Ends[1].Link = part, part
		}
		air.Ports = []*Port{first.Ends[1], second.Ends[0]}
		out.Nodes = append(out.Nodes[:len(out.Nodes):len(out.Nodes)], air)
		out.Links = append(out.Links, &first, &second)
	}
	return &out
}

// airScript sets the radios up, with hostapd and wpa_supplicant of the image, and stays. The network is open: simulated
// radios encrypt by the kernel's crypto modules, which images without Wi-Fi do not have.
func airScript(ssid string) string {
	return fmt.Sprintf(`set -e
modprobe mac80211_hwsim radios=2
mkdir -p /tmp/air
cat >/tmp/air/ap.conf <<END
interface=wlan0
bridge=br-ap
driver=nl80211
ssid=%[1]s
hw_mode=g
channel=1
wds_sta=1
wds_bridge=br-ap
END
cat >/tmp/air/sta.conf <<END
network={
	ssid="%[1]s"
	key_mgmt=NONE
	scan_freq=2412
}
END
for side in ap:eth0 sta:eth1; do
	ip link add br-${side%%%%:*} type bridge
	ip link set ${side##*:} master br-${side%%%%:*}
	ip link set br-${side%%%%:*} up
done
hostapd -B /tmp/air/ap.conf
iw dev wlan1 set 4addr on
ip link set wlan1 up
ip link set wlan1 master br-sta
wpa_supplicant -B -i wlan1 -b br-sta -c /tmp/air/sta.conf
while :; do sleep 3600; done
`, ssid)
}
