package power

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"syscall"
)

// The NBD protocol, doc/proto.md of NetworkBlockDevice/nbd: fixed newstyle handshake, simple replies.
const (
	nbdMagic      = 0x4e42444d41474943 // "NBDMAGIC"
	optionMagic   = 0x49484156454f5054 // "IHAVEOPT"
	optReplyMagic = 0x3e889045565a9
	requestMagic  = 0x25609513
	replyMagic    = 0x67446698

	handshakeFixedNewstyle = 1 << 0
	handshakeNoZeroes      = 1 << 1

	optExportName = 1
	optAbort      = 2
	optList       = 3
	optInfo       = 6
	optGo         = 7

	repAck        = 1
	repServer     = 2
	repInfo       = 3
	repErrUnsup   = 1<<31 + 1
	repErrInvalid = 1<<31 + 3
	repErrUnknown = 1<<31 + 6
	repErrTooBig  = 1<<31 + 9

	infoExport    = 0
	infoBlockSize = 3

	flagHasFlags        = 1 << 0
	flagSendFlush       = 1 << 2
	flagSendFUA         = 1 << 3
	flagSendTrim        = 1 << 5
	flagSendWriteZeroes = 1 << 6

	cmdRead        = 0
	cmdWrite       = 1
	cmdDisconnect  = 2
	cmdFlush       = 3
	cmdTrim        = 4
	cmdWriteZeroes = 6

	cmdFlagFUA    = 1 << 0
	cmdFlagNoHole = 1 << 1

	// maxRequest is the protocol's customary limit of a request with data, and what is told to the client.
	maxRequest = 32 << 20
	// maxOption bounds the data of an option: a name is at most 4096 bytes.
	maxOption = 8 << 10
)

// exportFlags are what the server can do.
const exportFlags = flagHasFlags | flagSendFlush | flagSendFUA | flagSendTrim | flagSendWriteZeroes

// Serve offers d as the unnamed export on a unix socket that it makes at path, until ctx ends. It returns once the
// socket is there; the wait function returns when all connections have ended, with the first error that was not a
// client's going away.
func Serve(ctx context.Context, path string, d *Disk) (wait func() error, err error) {
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("serve a disk: %w", err)
	}
	var work sync.WaitGroup
	var mu sync.Mutex
	var first error
	stop := context.AfterFunc(ctx, func() { l.Close() })
	work.Go(func() {
		defer stop()
		defer l.Close()
		for {
			c, err := l.Accept()
			if err != nil {
				if ctx.Err() == nil {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
				return
			}
			work.Go(func() {
				defer c.Close()
				stop := context.AfterFunc(ctx, func() { c.Close() })
				defer stop()
				if err := serveConn(c, d); err != nil && ctx.Err() == nil && !gone(err) {
					mu.Lock()
					first = errors.Join(first, err)
					mu.Unlock()
				}
			})
		}
	})
	return func() error {
		work.Wait()
		return first
	}, nil
}

// gone tells whether an error is a client that went away, as a QEMU that is killed does.
func gone(err error) bool {
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.EPIPE) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, net.ErrClosed)
}

// serveConn speaks with one client. Requests are answered one after the other, so that the log's order is one that a
// disk could have had.
func serveConn(rw io.ReadWriter, d *Disk) error {
	r, w := bufio.NewReaderSize(rw, 64<<10), bufio.NewWriterSize(rw, 64<<10)
	ok, err := handshake(r, w, d.Size())
	if err != nil || !ok {
		return err
	}
	return transmit(r, w, d)
}

func put16(b []byte, v uint16) []byte { return binary.BigEndian.AppendUint16(b, v) }
func put32(b []byte, v uint32) []byte { return binary.BigEndian.AppendUint32(b, v) }
func put64(b []byte, v uint64) []byte { return binary.BigEndian.AppendUint64(b, v) }

// handshake agrees on the export; ok means that requests follow.
func handshake(r *bufio.Reader, w *bufio.Writer, size int64) (ok bool, err error) {
	w.Write(put16(put64(put64(nil, nbdMagic), optionMagic), handshakeFixedNewstyle|handshakeNoZeroes)) // errors stay until Flush
	if err := w.Flush(); err != nil {
		return false, err
	}
	var flags [4]byte
	if _, err := io.ReadFull(r, flags[:]); err != nil {
		return false, err
	}
	client := binary.BigEndian.Uint32(flags[:])
	if client&^(handshakeFixedNewstyle|handshakeNoZeroes) != 0 {
		return false, fmt.Errorf("nbd handshake: client flags %#x are not known", client)
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return false, err
		}
		if m := binary.BigEndian.Uint64(head[:]); m != optionMagic {
			return false, fmt.Errorf("nbd handshake: option begins with %#x, want IHAVEOPT", m)
		}
		opt, length := binary.BigEndian.Uint32(head[8:]), binary.BigEndian.Uint32(head[12:])
		reply := func(kind uint32, data []byte) {
			w.Write(put32(put32(put32(put64(nil, optReplyMagic), opt), kind), uint32(len(data))))
			w.Write(data)
		}
		var data []byte
		if length > maxOption {
			if _, err := io.CopyN(io.Discard, r, int64(length)); err != nil {
				return false, err
			}
			reply(repErrTooBig, nil)
			if err := w.Flush(); err != nil {
				return false, err
			}
			continue
		}
		data = make([]byte, length)
		if _, err := io.ReadFull(r, data); err != nil {
			return false, err
		}
		switch opt {
		case optExportName:
			if length != 0 {
				return false, fmt.Errorf("nbd handshake: export %q is not known, there is only the unnamed one", data)
			}
			w.Write(put16(put64(nil, uint64(size)), exportFlags))
			if client&handshakeNoZeroes == 0 {
				w.Write(make([]byte, 124))
			}
			return true, w.Flush()
		case optAbort:
			reply(repAck, nil)
			return false, w.Flush()
		case optList:
			if length != 0 {
				reply(repErrInvalid, nil)
				break
			}
			reply(repServer, put32(nil, 0)) // the name's length: it has none
			reply(repAck, nil)
		case optInfo, optGo:
			name, valid := exportName(data)
			switch {
			case !valid:
				reply(repErrInvalid, nil)
			case name != "":
				reply(repErrUnknown, nil)
			default:
				reply(repInfo, put16(put64(put16(nil, infoExport), uint64(size)), exportFlags))
				reply(repInfo, put32(put32(put32(put16(nil, infoBlockSize), Sector), 4096), maxRequest))
				reply(repAck, nil)
				if opt == optGo {
					return true, w.Flush()
				}
			}
		default: // structured replies, TLS, meta contexts: clients do without
			reply(repErrUnsup, nil)
		}
		if err := w.Flush(); err != nil {
			return false, err
		}
	}
}

// exportName reads the data of the options INFO and GO.
func exportName(data []byte) (name string, ok bool) {
	if len(data) < 6 {
		return "", false
	}
	n := binary.BigEndian.Uint32(data)
	if uint64(n) > uint64(len(data)-6) {
		return "", false
	}
	rest := data[4+n:]
	requests := int(binary.BigEndian.Uint16(rest))
	if len(rest) != 2+2*requests {
		return "", false
	}
	return string(data[4 : 4+n]), true
}

// transmit answers requests until the client disconnects.
func transmit(r *bufio.Reader, w *bufio.Writer, d *Disk) error {
	var buf []byte
	for {
		var head [28]byte
		if _, err := io.ReadFull(r, head[:]); err != nil {
			return err
		}
		if m := binary.BigEndian.Uint32(head[:]); m != requestMagic {
			return fmt.Errorf("nbd: a request begins with %#x, want %#x", m, uint32(requestMagic))
		}
		flags, kind := binary.BigEndian.Uint16(head[4:]), binary.BigEndian.Uint16(head[6:])
		off, length := int64(binary.BigEndian.Uint64(head[16:])), int64(binary.BigEndian.Uint32(head[24:]))
		data := buf[:0]
		if kind == cmdRead || kind == cmdWrite {
			if length > maxRequest {
				return fmt.Errorf("nbd: a request of %d bytes, more than the %d that were offered", length, maxRequest)
			}
			if int64(len(buf)) < length {
				buf = make([]byte, length)
			}
			data = buf[:length]
		}
		if kind == cmdWrite {
			if _, err := io.ReadFull(r, data); err != nil {
				return err
			}
		}
		fua := flags&cmdFlagFUA != 0
		var err error
		switch known := flags&^(cmdFlagFUA|cmdFlagNoHole) == 0; {
		case kind == cmdDisconnect:
			return nil
		case !known:
			err = syscall.EINVAL
		case kind == cmdRead:
			_, err = d.ReadAt(data, off)
		case kind == cmdWrite:
			err = d.writeAt(data, off, fua)
		case kind == cmdFlush:
			err = d.Flush()
		case kind == cmdTrim:
			err = d.zero(Trim, off, length, fua)
		case kind == cmdWriteZeroes:
			err = d.zero(Zero, off, length, fua)
		default:
			err = syscall.EINVAL
		}
		w.Write(put32(put32(nil, replyMagic), uint32(nbdErrno(err))))
		w.Write(head[8:16]) // the client's cookie
		if err == nil && kind == cmdRead {
			w.Write(data)
		}
		if err := w.Flush(); err != nil {
			return err
		}
		if err != nil && nbdErrno(err) == syscall.EIO {
			return err // the log or the base is at fault: nothing that follows can be trusted
		}
	}
}

// nbdErrno is the error number of the protocol for an error of a disk.
func nbdErrno(err error) syscall.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, ErrRange), errors.Is(err, syscall.EINVAL):
		return syscall.EINVAL
	case errors.Is(err, syscall.ENOSPC):
		return syscall.ENOSPC
	}
	return syscall.EIO
}
