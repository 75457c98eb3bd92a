package carrier

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"
)

// Times of the control connection. The heartbeat is slow enough to cost
// nothing and fast enough that a dead peer is known in three seconds.
const (
	beat       = time.Second
	deadAfter  = 3 * beat
	helloWait  = 5 * time.Second
	maxMessage = 64 << 10
)

// message is one line of JSON on a control connection. Unknown fields are
// ignored, so that newer peers may say more.
type message struct {
	Hello *Hello `json:"hello,omitempty"`
	Ping  uint64 `json:"ping,omitempty"` // to be answered with the same number
	Pong  uint64 `json:"pong,omitempty"`
}

// errPeerDead: nothing came for deadAfter.
var errPeerDead = errors.New("no sign of life on the control connection")

// serveControl speaks on an authenticated control connection until it ends.
// up is called once when the other end has said hello, rtt after each answer.
func serveControl(ctx context.Context, c net.Conn, own Hello, up func(Hello), rtt func(time.Duration)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })
	defer stop()

	send := func(m message) error {
		b, err := json.Marshal(m)
		if err != nil {
			return err
		}
		if err := c.SetWriteDeadline(time.Now().Add(deadAfter)); err != nil {
			return err
		}
		_, err = c.Write(append(b, '\n'))
		return err
	}
	if err := send(message{Hello: &own}); err != nil {
		return fmt.Errorf("say hello: %w", err)
	}

	in := bufio.NewReaderSize(c, maxMessage)
	read := func(limit time.Duration) (m message, err error) {
		if err := c.SetReadDeadline(time.Now().Add(limit)); err != nil {
			return m, err
		}
		if err := ctx.Err(); err != nil { // else our deadline may have replaced that of AfterFunc
			return m, err
		}
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return m, fmt.Errorf("message longer than %d bytes", maxMessage)
		}
		if err != nil {
			if ctx.Err() != nil {
				return m, ctx.Err()
			}
			if isTimeout(err) {
				return m, fmt.Errorf("%w for %v", errPeerDead, limit)
			}
			return m, err
		}
		return parseMessage(line)
	}
	m, err := read(helloWait)
	if err != nil {
		return fmt.Errorf("wait for hello: %w", err)
	}
	if m.Hello == nil {
		return errors.New("wait for hello: got another message")
	}
	up(*m.Hello)

	// One goroutine writes, this one reads; what shall be written goes over.
	pongs := make(chan uint64, 4)
	written := make(chan error, 1)
	start := time.Now()
	go func() {
		t := time.NewTicker(beat)
		defer t.Stop()
		for {
			var err error
			select {
			case <-ctx.Done():
				written <- nil
				return
			case n := <-pongs:
				err = send(message{Pong: n})
			case <-t.C:
				err = send(message{Ping: uint64(time.Since(start)) | 1})
			}
			if err != nil {
				cancel()
				written <- err
				return
			}
		}
	}()
	for err == nil {
		if m, err = read(deadAfter); err != nil {
			break
		}
		if m.Ping != 0 {
			select {
			case pongs <- m.Ping:
			default: // more pings than answers fit: the next one counts
			}
		}
		if m.Pong != 0 {
			if d := time.Since(start) - time.Duration(m.Pong); d >= 0 && d < deadAfter {
				rtt(d)
			}
		}
	}
	cancel()
	if werr := <-written; werr != nil && errors.Is(err, context.Canceled) {
		err = werr
	}
	return err
}

func parseMessage(line []byte) (m message, err error) {
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("read control message: %w", err)
	}
	return m, nil
}
