package bus

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"syscall"
)

// DefaultSocket is where the broker listens on a device.
const DefaultSocket = "/var/run/ubus/ubus.sock"

// Message types (ubusmsg.h, enum ubus_msg_type).
const (
	msgHello        = 0
	msgStatus       = 1
	msgData         = 2
	msgPing         = 3
	msgLookup       = 4
	msgInvoke       = 5
	msgAddObject    = 6
	msgRemoveObject = 7
	msgSubscribe    = 8
	msgUnsubscribe  = 9
	msgNotify       = 10
	msgMonitor      = 11
)

// Attributes of a message (ubusmsg.h, enum ubus_msg_attr).
const (
	attrStatus      = 1
	attrObjPath     = 2
	attrObjID       = 3
	attrMethod      = 4
	attrObjType     = 5
	attrSignature   = 6
	attrData        = 7
	attrTarget      = 8
	attrActive      = 9
	attrNoReply     = 10
	attrSubscribers = 11
	attrUser        = 12
	attrGroup       = 13
)

// Attributes of a MONITOR message (ubusmsg.h, enum ubus_monitor_attr).
const (
	monitorClient = 0
	monitorPeer   = 1
	monitorSend   = 2
	monitorSeq    = 3
	monitorType   = 4
	monitorData   = 5
)

// System objects (ubusmsg.h). Ids of clients, objects and types are random and
// not below systemMax.
const (
	objEvent   = 1
	objACL     = 2
	objMonitor = 3
	systemMax  = 1024
)

const (
	headerLen = 12 // message header and the header of the blob
	chunkSize = 64 << 10
)

var errVersion = errors.New("peer does not speak ubus protocol version 0")

// message is one message as it travels: raw holds all its bytes.
type message struct {
	raw  []byte
	file *os.File // passed along by SCM_RIGHTS, usually nil
}

func (m *message) typ() uint8       { return m.raw[1] }
func (m *message) seq() uint16      { return binary.BigEndian.Uint16(m.raw[2:]) }
func (m *message) peer() uint32     { return binary.BigEndian.Uint32(m.raw[4:]) }
func (m *message) setPeer(p uint32) { binary.BigEndian.PutUint32(m.raw[4:], p) }
func (m *message) body() []byte     { return m.raw[headerLen:] }

func (m *message) closeFile() {
	if m.file != nil {
		m.file.Close()
		m.file = nil
	}
}

// startMessage begins a message in a new buffer; finish completes it.
func startMessage(typ uint8, seq uint16, peer uint32, size int) []byte {
	b := make([]byte, headerLen, headerLen+size)
	b[1] = typ
	binary.BigEndian.PutUint16(b[2:], seq)
	binary.BigEndian.PutUint32(b[4:], peer)
	return b
}

// finish writes the length of the blob.
func finish(b []byte) []byte {
	binary.BigEndian.PutUint32(b[8:], uint32(len(b)-8))
	return b
}

// attrs are the attributes of a message, parsed. Attributes of the wrong type
// count as absent, the last of several wins (blob.c, blob_parse).
type attrs struct {
	has         uint32 // bit per attribute id
	status      uint32
	objPath     string
	objID       uint32
	method      string
	objType     uint32
	signature   []byte
	data        []byte
	target      uint32
	active      bool
	noReply     bool
	subscribers []byte
	user, group string
}

func (a *attrs) got(ids ...uint8) bool {
	for _, id := range ids {
		if a.has&(1<<id) == 0 {
			return false
		}
	}
	return true
}

func parseAttrs(b []byte) (a attrs) {
	for {
		id, data, rest, ok := nextBlob(b)
		if !ok {
			return a
		}
		b = rest
		if a.set(id, data) {
			a.has |= 1 << id
		}
	}
}

func (a *attrs) set(id uint8, data []byte) (ok bool) {
	switch id {
	case attrStatus:
		a.status, ok = blobUint32(data)
	case attrObjPath:
		a.objPath, ok = blobString(data)
	case attrObjID:
		a.objID, ok = blobUint32(data)
	case attrMethod:
		a.method, ok = blobString(data)
	case attrObjType:
		a.objType, ok = blobUint32(data)
	case attrSignature:
		a.signature, ok = data, true
	case attrData:
		a.data, ok = data, true
	case attrTarget:
		a.target, ok = blobUint32(data)
	case attrActive:
		if ok = len(data) == 1; ok {
			a.active = data[0] != 0
		}
	case attrNoReply:
		if ok = len(data) == 1; ok {
			a.noReply = data[0] != 0
		}
	case attrSubscribers:
		a.subscribers, ok = data, true
	case attrUser:
		a.user, ok = blobString(data)
	case attrGroup:
		a.group, ok = blobString(data)
	}
	return ok
}

func blobUint32(b []byte) (uint32, bool) {
	if len(b) != 4 {
		return 0, false
	}
	return binary.BigEndian.Uint32(b), true
}

func blobString(b []byte) (string, bool) {
	if len(b) == 0 || b[len(b)-1] != 0 {
		return "", false
	}
	for i, c := range b {
		if c == 0 {
			return string(b[:i]), true
		}
	}
	return "", false
}

// reader reads messages from a stream socket.
type reader struct {
	conn *net.UnixConn
	oob  []byte
}

func newReader(conn *net.UnixConn) *reader {
	// Room for a few descriptors: a peer that sends several must not make the
	// kernel drop the rest into a truncated control message.
	return &reader{conn: conn, oob: make([]byte, syscall.CmsgSpace(4*4))}
}

// next reads one message. Memory grows with the bytes that really came, not
// with the length that the peer claims.
func (r *reader) next() (m message, err error) {
	defer func() {
		if err != nil {
			m.closeFile()
		}
	}()
	var head [headerLen]byte
	for n := 0; n < headerLen; {
		// A descriptor rides on the first byte of its message, and the kernel
		// ends a read behind the segment that carried one (unix(7)).
		got, oobn, _, _, err := r.conn.ReadMsgUnix(head[n:], r.oob)
		if oobn > 0 {
			m.takeFile(r.oob[:oobn])
		}
		if err != nil {
			return m, err
		}
		if got == 0 {
			if n == 0 {
				return m, io.EOF
			}
			return m, io.ErrUnexpectedEOF
		}
		n += got
	}
	if head[0] != 0 {
		return m, errVersion
	}
	n := int(binary.BigEndian.Uint32(head[8:]) & blobLenMask)
	if n < 4 || pad4(n) > maxMessage {
		return m, fmt.Errorf("%w: message of %d bytes", errBlob, n)
	}
	total := 8 + n
	m.raw = append(make([]byte, 0, min(total, chunkSize)), head[:]...)
	for len(m.raw) < total {
		if len(m.raw) == cap(m.raw) {
			bigger := make([]byte, len(m.raw), min(total, 4*cap(m.raw)))
			copy(bigger, m.raw)
			m.raw = bigger
		}
		at := len(m.raw)
		m.raw = m.raw[:cap(m.raw)]
		got, err := io.ReadFull(r.conn, m.raw[at:])
		m.raw = m.raw[:at+got]
		if err != nil {
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			return m, err
		}
	}
	return m, nil
}

// takeFile keeps the first descriptor of a control message and closes others.
func (m *message) takeFile(oob []byte) {
	msgs, err := syscall.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for i := range msgs {
		fds, err := syscall.ParseUnixRights(&msgs[i])
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if m.file != nil {
				syscall.Close(fd)
				continue
			}
			m.file = os.NewFile(uintptr(fd), "bus")
		}
	}
}

// writeMessage writes one message and waits until the socket took it all.
func writeMessage(conn *net.UnixConn, b []byte, f *os.File) error {
	if f != nil {
		rc, err := f.SyscallConn()
		if err != nil {
			return err
		}
		var n int
		var werr error
		// Inside Control the descriptor cannot be closed under us.
		if err := rc.Control(func(fd uintptr) {
			n, _, werr = conn.WriteMsgUnix(b, syscall.UnixRights(int(fd)), nil)
		}); err != nil {
			return err
		}
		if werr != nil {
			return werr
		}
		b = b[n:]
	}
	if len(b) == 0 {
		return nil
	}
	_, err := conn.Write(b)
	return err
}
