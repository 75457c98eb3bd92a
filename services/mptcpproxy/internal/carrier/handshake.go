package carrier

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"weft/services/mptcpproxy/internal/stream"
)

// What a connection is for travels as the application protocol of TLS (ALPN).
const (
	protoTrunk   = "weft-trunk/1"
	protoSealed  = "weft-trunk/1+seal"
	protoControl = "weft-control/1"
)

// Labels of exported keying material (RFC 8446, section 7.5).
const (
	exportTrunk   = "EXPERIMENTAL-weft-trunk"
	exportSession = "EXPERIMENTAL-weft-datagram"
)

// admitted is the byte by which the accepting side ends a handshake; every
// other one is the reason of a refusal, see refusal.
const (
	admitted   = 0
	noCapacity = 1
)

// Errors of a handshake that callers may tell apart.
var (
	// ErrWrongKey: one end does not hold the key that the other expects.
	ErrWrongKey = errors.New("the keys do not fit: `key` must be the same on both gateways, or each `peer_key` what `mptcp pubkey` prints on the other")
	// ErrNotWeft: what answers does not speak our protocol.
	ErrNotWeft = errors.New("what answers there is not a Weft gateway: check address and port")
	// ErrRefused: the other end knows us and does not want the connection.
	ErrRefused = errors.New("refused by the far gateway")
)

// recordConn reads from a TLS connection no further than to the end of the
// record that is being read, so that what follows the last record stays in the
// socket. crypto/tls itself reads ahead.
type recordConn struct {
	net.Conn
	head [5]byte // of the record: type, version, length
	have int     // bytes of head passed on so far
	left int     // bytes of the record's body still to come
}

func (c *recordConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	if c.left > 0 {
		n, err := c.Conn.Read(p[:min(len(p), c.left)])
		c.left -= n
		return n, err
	}
	n, err := c.Conn.Read(p[:min(len(p), len(c.head)-c.have)])
	c.have += copy(c.head[c.have:], p[:n])
	if c.have == len(c.head) {
		c.left = int(binary.BigEndian.Uint16(c.head[3:]))
		c.have = 0
	}
	return n, err
}

// certificate wraps the key, since TLS wants one (RFC 7250 raw keys are not in
// crypto/tls). Nothing in it but the key is looked at, no date either.
func (k Keys) certificate() (tls.Certificate, error) {
	t := &x509.Certificate{
		SerialNumber: big.NewInt(1),
		Subject:      pkix.Name{CommonName: "weft"},
		NotBefore:    time.Unix(0, 0),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC), // RFC 5280, 4.1.2.5: never
	}
	der, err := x509.CreateCertificate(rand.Reader, t, t, k.private.Public(), k.private)
	if err != nil {
		return tls.Certificate{}, fmt.Errorf("make certificate: %w", err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: k.private}, nil
}

// serverName tells the accepting side by which of its keys we know it, without
// showing the key.
func serverName(key ed25519.PublicKey) string {
	h := sha256.Sum256(append([]byte("weft server name 1 "), key...))
	return hex.EncodeToString(h[:16]) + ".weft.invalid"
}

func peerKey(cs tls.ConnectionState) ed25519.PublicKey {
	if len(cs.PeerCertificates) != 1 {
		return nil
	}
	k, _ := cs.PeerCertificates[0].PublicKey.(ed25519.PublicKey)
	return k
}

// clientConfig is for dialling the holder of k.peer.
func (k Keys) clientConfig() (*tls.Config, error) {
	cert, err := k.certificate()
	if err != nil {
		return nil, err
	}
	return &tls.Config{
		MinVersion:   tls.VersionTLS13,
		Certificates: []tls.Certificate{cert},
		ServerName:   serverName(k.peer),
		// The pinned key replaces names, authorities and dates.
		InsecureSkipVerify: true,
		VerifyConnection: func(cs tls.ConnectionState) error {
			if got := peerKey(cs); !k.peer.Equal(got) {
				return ErrWrongKey
			}
			return nil
		},
		SessionTicketsDisabled: true,
	}, nil
}

// clientHandshake authenticates an outgoing connection and returns once the
// other end has admitted us.
func clientHandshake(ctx context.Context, raw net.Conn, cfg *tls.Config, proto string) (*tls.Conn, error) {
	cfg = cfg.Clone()
	cfg.NextProtos = []string{proto}
	c := tls.Client(&recordConn{Conn: raw}, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, explainTLS(err)
	}
	if got := c.ConnectionState().NegotiatedProtocol; got != proto {
		return nil, fmt.Errorf("%w (it does not know the protocol %s; are both gateways of the same version?)", ErrNotWeft, proto)
	}
	if d, ok := ctx.Deadline(); ok {
		if err := raw.SetReadDeadline(d); err != nil {
			return nil, err
		}
	}
	stop := context.AfterFunc(ctx, func() { _ = raw.SetReadDeadline(time.Unix(1, 0)) })
	var b [1]byte
	_, err := c.Read(b[:])
	if !stop() && err == nil {
		err = ctx.Err()
	}
	if err != nil {
		return nil, explainTLS(err)
	}
	if b[0] != admitted {
		return nil, fmt.Errorf("%w: %s", ErrRefused, refusal(b[0]))
	}
	return c, raw.SetDeadline(time.Time{})
}

func refusal(b byte) string {
	if b == noCapacity {
		return "it has too many connections (option max_flows there)"
	}
	return fmt.Sprintf("reason %d", b)
}

// explainTLS says what a failed handshake means for the person who has to
// mend it.
func explainTLS(err error) error {
	var alert tls.AlertError
	var head tls.RecordHeaderError
	switch {
	case errors.Is(err, ErrWrongKey):
		return err
	case errors.As(err, &head):
		return fmt.Errorf("%w (its answer is not TLS)", ErrNotWeft)
	case errors.As(err, &alert), strings.HasPrefix(err.Error(), "remote error: tls:"):
		return fmt.Errorf("%w (the far gateway answered: %w)", ErrWrongKey, err)
	case isEOF(err):
		return fmt.Errorf("closed by the far gateway before it said a word: it has no accept section for us (key, option from), or limits its rate: %w", err)
	case isTimeout(err):
		return fmt.Errorf("connected, but no answer to the handshake: something between holds it up, or it is not a Weft gateway: %w", err)
	}
	return err
}

// identity is one of our keys on the accepting side, with those who may come.
type identity struct {
	cert  tls.Certificate
	rules []*Accept
}

// identities sorts the rules by the name under which they are asked for.
func identities(rules []Accept) (map[string]*identity, error) {
	out := make(map[string]*identity)
	for i := range rules {
		a := &rules[i]
		if a.Kind != Convert {
			continue
		}
		if !a.Keys.Valid() {
			return nil, fmt.Errorf("accept %s: no key; the carrier convert needs `key`, or `private_key` and `peer_key`", a.Name)
		}
		name := serverName(a.Keys.private.Public().(ed25519.PublicKey))
		id := out[name]
		if id == nil {
			cert, err := a.Keys.certificate()
			if err != nil {
				return nil, err
			}
			id = &identity{cert: cert}
			out[name] = id
		}
		for _, b := range id.rules {
			if b.Keys.peer.Equal(a.Keys.peer) {
				return nil, fmt.Errorf("accept %s: the same keys as accept %s; give each near gateway a key of its own", a.Name, b.Name)
			}
		}
		id.rules = append(id.rules, a)
	}
	return out, nil
}

// serverHandshake authenticates an incoming connection against ids and says by
// which rule and for which protocol it came. admit is asked last.
func serverHandshake(ctx context.Context, raw net.Conn, first net.Conn, ids map[string]*identity) (*tls.Conn, *Accept, string, error) {
	var rule *Accept
	source := addrPortOf(raw.RemoteAddr()).Addr()
	cfg := &tls.Config{
		MinVersion:             tls.VersionTLS13,
		SessionTicketsDisabled: true,
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			id := ids[h.ServerName]
			if id == nil {
				return nil, ErrWrongKey
			}
			return &tls.Config{
				MinVersion:             tls.VersionTLS13,
				Certificates:           []tls.Certificate{id.cert},
				ClientAuth:             tls.RequireAnyClientCert,
				SessionTicketsDisabled: true,
				NextProtos:             []string{protoTrunk, protoSealed, protoControl},
				VerifyConnection: func(cs tls.ConnectionState) error {
					key := peerKey(cs)
					for _, a := range id.rules {
						if a.Keys.peer.Equal(key) {
							if !from(a.From, source) {
								return fmt.Errorf("accept %s: %v is not in `list from`", a.Name, source)
							}
							rule = a
							return nil
						}
					}
					return ErrWrongKey
				},
			}, nil
		},
	}
	c := tls.Server(&recordConn{Conn: first}, cfg)
	if err := c.HandshakeContext(ctx); err != nil {
		return nil, nil, "", err
	}
	proto := c.ConnectionState().NegotiatedProtocol
	if rule == nil || proto == "" {
		return nil, nil, "", errors.New("no application protocol asked for")
	}
	if _, err := c.Write([]byte{admitted}); err != nil {
		return nil, nil, "", err
	}
	return c, rule, proto, raw.SetDeadline(time.Time{})
}

// from says whether a source may connect; no prefix at all means all may.
func from(list []netip.Prefix, a netip.Addr) bool {
	return len(list) == 0 || slices.ContainsFunc(list, func(p netip.Prefix) bool { return p.Contains(a) })
}

// trunkKeys gives a trunk what it needs to seal frames: key and salt for each
// direction, by the cipher that TLS agreed on (both ends saw which one their
// processors do fast).
func trunkKeys(t *stream.Trunk, cs tls.ConnectionState, client bool) error {
	const keyLen, saltLen = 32, 12
	m, err := cs.ExportKeyingMaterial(exportTrunk, nil, 2*(keyLen+saltLen))
	if err != nil {
		return fmt.Errorf("export trunk keys: %w", err)
	}
	up, down := m[:keyLen+saltLen], m[keyLen+saltLen:]
	if !client {
		up, down = down, up
	}
	if t.Seal, err = aead(cs.CipherSuite, up[:keyLen]); err != nil {
		return err
	}
	if t.Open, err = aead(cs.CipherSuite, down[:keyLen]); err != nil {
		return err
	}
	copy(t.SaltSeal[:], up[keyLen:])
	copy(t.SaltOpen[:], down[keyLen:])
	return nil
}

func aead(suite uint16, key []byte) (cipher.AEAD, error) {
	if suite == tls.TLS_CHACHA20_POLY1305_SHA256 {
		return chacha20poly1305.New(key)
	}
	b, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(b)
}

// sessionKey derives the datagram session of a control connection.
func sessionKey(cs tls.ConnectionState) (id uint64, key [32]byte, err error) {
	m, err := cs.ExportKeyingMaterial(exportSession, nil, 8+len(key))
	if err != nil {
		return 0, key, fmt.Errorf("export datagram keys: %w", err)
	}
	copy(key[:], m[8:])
	return binary.BigEndian.Uint64(m), key, nil
}
