package firewall

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"weft/init/bus"
	"weft/init/uci"
	"weft/init/unit"
	"weft/services/firewall/ruleset"
)

// TestService runs the service with a bus and an interface that moves to another
// device, in a namespace of its own.
func TestService(t *testing.T) {
	needNft(t)
	dir := t.TempDir()
	image, err := os.ReadFile("../../buildroot-overlay/rootfs/etc/config/firewall")
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"network": bedNetwork, "firewall": string(image)} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	namespace(t, "service", dir)
}

// interfaces is a reply of `network.interface dump`.
func interfaces(wan string) bus.Table {
	return bus.Table{{Name: "interface", Value: bus.Array{
		bus.Table{{Name: "interface", Value: "wan"}, {Name: "up", Value: true}, {Name: "l3_device", Value: wan},
			{Name: "ipv4-address", Value: bus.Array{bus.Table{{Name: "address", Value: "203.0.113.9"}, {Name: "mask", Value: int32(24)}}}}},
	}}}
}

// serviceInside is TestService in its namespace.
func serviceInside(dir string) error {
	ctx, cancel := context.WithTimeout(context.Background(), 2*patient)
	defer cancel()
	log := unit.NewLog(os.Stderr, false, slog.LevelInfo)
	socket := filepath.Join(dir, "ubus.sock")
	wait := func(what string, ok func() bool) error {
		for !ok() {
			select {
			case <-ctx.Done():
				out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
				return fmt.Errorf("waited in vain for %s; rules:\n%s", what, out)
			case <-time.After(20 * time.Millisecond):
			}
		}
		return nil
	}
	holds := func(text string) func() bool {
		return func() bool {
			out, _ := exec.Command("nft", "list", "ruleset").CombinedOutput()
			return strings.Contains(string(out), text)
		}
	}

	// Without a bus first, as at boot.
	ended := make(chan int, 1)
	runCtx, stop := context.WithCancel(ctx)
	defer stop()
	go func() {
		ended <- unit.Main(Run)(runCtx, &unit.Call{
			Args:  []string{"firewall", "--config-dir", dir, "--bus", socket, "--state-dir", filepath.Join(dir, "state")},
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/", Getenv: func(string) string { return "" },
		})
	}()
	if err := wait("the rules of the configuration", holds(`iifname "wan0" jump input_wan`)); err != nil {
		return err
	}
	forwards := func() bool {
		a, _ := os.ReadFile("/proc/sys/net/ipv4/ip_forward")
		b, _ := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding")
		return string(a) == "1\n" && string(b) == "1\n"
	}
	if err := wait("forwarding", forwards); err != nil {
		return err
	}

	broker, err := bus.Listen(socket, bus.BrokerOptions{Log: log})
	if err != nil {
		return err
	}
	served := make(chan error, 1)
	go func() { served <- broker.Serve(ctx) }()
	peer := bus.Connect(ctx, socket, log)
	defer peer.Close()
	device := make(chan string, 1)
	device <- "ppp0"
	network, err := peer.Publish(&bus.Object{Name: "network.interface", Methods: []bus.Method{{Name: "dump", Handle: func(_ context.Context, r *bus.Request) error {
		d := <-device
		device <- d
		return r.Reply(interfaces(d))
	}}}})
	if err != nil {
		return err
	}
	if err := wait("the device that the bus tells", holds(`iifname "ppp0" jump input_wan`)); err != nil {
		// The interfaces may have been asked for before there was an object.
		return err
	}
	<-device
	device <- "wwan0"
	moved := func() bool {
		_ = network.Notify(ctx, "interface.update", bus.Table{{Name: "interface", Value: "wan"}})
		return holds(`iifname "wwan0" jump input_wan`)()
	}
	if err := wait("the device after a notification", moved); err != nil {
		return err
	}

	// A port forward comes by a reload; a faulty neighbour is named.
	text, err := os.ReadFile(filepath.Join(dir, "firewall"))
	if err != nil {
		return err
	}
	text = append(text, bedForward+"\nconfig rule\n\toption name Odd\n\toption src moon\n\toption target ACCEPT\n"...)
	if err := os.WriteFile(filepath.Join(dir, "firewall"), text, 0o600); err != nil {
		return err
	}
	reply, err := peer.Call(ctx, "firewall", "reload", nil)
	if err != nil {
		return err
	}
	if fmt.Sprint(reply.Get("loaded")) != "true" || !strings.Contains(fmt.Sprint(reply.Get("problems")), "Odd") {
		return fmt.Errorf("reload replied %v", reply)
	}
	if !holds("dnat ip to 192.168.1.2:80")() || !holds("203.0.113.9 tcp dport 8080 dnat")() {
		return fmt.Errorf("the port forward or its reflection is missing")
	}
	if _, err := peer.Call(ctx, "firewall", "stop", nil); err != nil {
		return err
	}
	if holds("fw4")() {
		return fmt.Errorf("rules are there after stop")
	}
	if _, err := peer.Call(ctx, "firewall", "reload", nil); err != nil {
		return err
	}

	// An unreadable configuration leaves the rules; so does the end of the service.
	if err := os.Rename(filepath.Join(dir, "firewall"), filepath.Join(dir, "away")); err != nil {
		return err
	}
	if reply, err = peer.Call(ctx, "firewall", "reload", nil); err != nil || reply.String("error") == "" {
		return fmt.Errorf("reload without a configuration replied %v, %v", reply, err)
	}
	if !holds("dnat ip to 192.168.1.2:80")() {
		return fmt.Errorf("the rules went with the configuration")
	}
	stop()
	if code := <-ended; code != 0 {
		return fmt.Errorf("the service ended with %d", code)
	}
	if !holds("dnat ip to 192.168.1.2:80")() {
		return fmt.Errorf("the rules went with the service")
	}

	// A device without a configuration and without rules gets LEDE's.
	if err := exec.Command("nft", "flush", "ruleset").Run(); err != nil {
		return err
	}
	runCtx, stop = context.WithCancel(ctx)
	defer stop()
	go func() {
		ended <- unit.Main(Run)(runCtx, &unit.Call{
			Args:  []string{"firewall", "--config-dir", dir, "--bus", socket, "--state-dir", filepath.Join(dir, "state")},
			Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr, Dir: "/", Getenv: func(string) string { return "" },
		})
	}()
	if err := wait("the built-in rules", holds("jump reject_from_wan")); err != nil {
		return err
	}
	stop()
	<-ended
	cancel()
	<-served
	return nil
}

// TestRefused gives the kernel a section that it does not take: the others are
// loaded, and it is named.
func TestRefused(t *testing.T) {
	needNft(t)
	namespace(t, "refused")
}

func refusedInside() error {
	pkg, err := uci.Parse("firewall", strings.NewReader(fallback), true)
	if err != nil {
		return err
	}
	out := Build(Input{Firewall: pkg, Networks: Networks{"wan": {Device: "wan0"}, "lan": {Device: "lan0"}}})
	// A jump into nowhere stands for what a kernel without some module refuses.
	out.Ruleset.Chain("input_wan").Add("@rule[7] (Broken)", "", ruleset.Jump("nowhere"))
	a := newApplier(unit.NewLog(os.Stderr, false, slog.LevelInfo))
	if err := a.apply(context.Background(), out, true); err != nil {
		return err
	}
	if text := problemsText(out.Problems); !strings.Contains(text, "@rule[7] (Broken)") || strings.Count(text, "\n") != 1 {
		return fmt.Errorf("problems: %s", text)
	}
	rules, err := exec.Command("nft", "list", "ruleset").Output()
	if err != nil {
		return err
	}
	if !strings.Contains(string(rules), "Allow-DHCP-Renew") || strings.Contains(string(rules), "nowhere") || strings.Contains(string(rules), "_try") {
		return fmt.Errorf("rules:\n%s", rules)
	}
	return nil
}
