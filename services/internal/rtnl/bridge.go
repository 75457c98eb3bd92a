package rtnl

import (
	"encoding/binary"
	"fmt"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// BridgeOption is a setting of a bridge (IFLA_BR_…, linux/if_link.h). Its
// unit is the kernel's: times in hundredths of a second.
type BridgeOption uint16

// The settings of bridges that the configuration can ask for.
const (
	BridgeForwardDelay       BridgeOption = 1  // u32
	BridgeHelloTime          BridgeOption = 2  // u32
	BridgeMaxAge             BridgeOption = 3  // u32
	BridgeAgeingTime         BridgeOption = 4  // u32
	BridgeSTP                BridgeOption = 5  // u32
	BridgePriority           BridgeOption = 6  // u16
	BridgeVLANFiltering      BridgeOption = 7  // u8
	BridgeSnooping           BridgeOption = 23 // u8
	BridgeQuerier            BridgeOption = 25 // u8
	BridgeHashMax            BridgeOption = 27 // u32
	BridgeLastMemberCount    BridgeOption = 28 // u32
	BridgeLastMemberInterval BridgeOption = 30 // u64
	BridgeQueryInterval      BridgeOption = 33 // u64
	BridgeResponseInterval   BridgeOption = 34 // u64
	BridgeDefaultPVID        BridgeOption = 39 // u16
)

// size is the number of bytes that the kernel has for an option.
func (o BridgeOption) size() int {
	switch o {
	case BridgeVLANFiltering, BridgeSnooping, BridgeQuerier:
		return 1
	case BridgePriority, BridgeDefaultPVID:
		return 2
	case BridgeLastMemberInterval, BridgeQueryInterval, BridgeResponseInterval:
		return 8
	}
	return 4
}

// BridgeOptions reads the settings of a bridge.
func (c *Conn) BridgeOptions(link int) (map[BridgeOption]uint64, error) {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(link))
	ms, err := c.c.Execute(netlink.Message{Header: netlink.Header{Type: unix.RTM_GETLINK, Flags: netlink.Request}, Data: body})
	if err != nil {
		return nil, fmt.Errorf("read the settings of a bridge: %w", err)
	}
	out := map[BridgeOption]uint64{}
	for _, m := range ms {
		if err := parseBridge(m.Data, out); err != nil {
			return nil, fmt.Errorf("read the settings of a bridge: %w", err)
		}
	}
	return out, nil
}

func parseBridge(b []byte, out map[BridgeOption]uint64) error {
	if len(b) < unix.SizeofIfInfomsg {
		return errShort
	}
	ad, err := netlink.NewAttributeDecoder(b[unix.SizeofIfInfomsg:])
	if err != nil {
		return err
	}
	for ad.Next() {
		if ad.Type() != unix.IFLA_LINKINFO {
			continue
		}
		ad.Nested(func(info *netlink.AttributeDecoder) error {
			for info.Next() {
				if info.Type() != unix.IFLA_INFO_DATA {
					continue
				}
				info.Nested(func(data *netlink.AttributeDecoder) error {
					for data.Next() {
						o, v := BridgeOption(data.Type()), data.Bytes()
						if len(v) != o.size() {
							continue
						}
						switch len(v) {
						case 1:
							out[o] = uint64(v[0])
						case 2:
							out[o] = uint64(binary.NativeEndian.Uint16(v))
						case 4:
							out[o] = uint64(binary.NativeEndian.Uint32(v))
						case 8:
							out[o] = binary.NativeEndian.Uint64(v)
						}
					}
					return nil
				})
			}
			return nil
		})
	}
	return ad.Err()
}

// SetBridge changes one setting of a bridge.
func (c *Conn) SetBridge(link int, o BridgeOption, value uint64) error {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], uint32(link))
	v := make([]byte, 8)
	switch o.size() {
	case 1:
		v[0] = uint8(value)
	case 2:
		binary.NativeEndian.PutUint16(v, uint16(value))
	case 4:
		binary.NativeEndian.PutUint32(v, uint32(value))
	case 8:
		binary.NativeEndian.PutUint64(v, value)
	}
	ae := netlink.NewAttributeEncoder()
	ae.Nested(unix.IFLA_LINKINFO, func(info *netlink.AttributeEncoder) error {
		info.String(unix.IFLA_INFO_KIND, "bridge")
		info.Nested(unix.IFLA_INFO_DATA, func(data *netlink.AttributeEncoder) error {
			data.Bytes(uint16(o), v[:o.size()])
			return nil
		})
		return nil
	})
	b, err := ae.Encode()
	if err != nil {
		return err
	}
	return c.change(unix.RTM_NEWLINK, 0, append(body, b...))
}
