package cli

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"weft/image/firmware"
	"weft/image/firmware/trust"
	"weft/image/firmware/ucert"
	"weft/image/firmware/usign"
)

func (a *app) keysCommand() *cobra.Command {
	c := &cobra.Command{Use: "keys", Short: "usign keys: new, fingerprint, certify", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() }}
	var comment string
	fresh := &cobra.Command{Use: "new NAME", Short: "make a key pair: NAME (secret) and NAME.pub",
		Long: `new makes an Ed25519 key pair in usign's format. Put NAME.pub into the image as
/etc/opkg/keys/<fingerprint> (FILES=...), and keep NAME off the machines that build.`,
		Example: `  go run ./image keys new release.key --comment "community release key"`,
		Args:    exactArgs(1, "a file name"),
		RunE: func(_ *cobra.Command, args []string) error {
			k, err := usign.Generate(comment)
			if err != nil {
				return err
			}
			if err := writeNew(args[0], k.Text(), 0o600); err != nil {
				return err
			}
			if err := writeNew(args[0]+".pub", k.Public().Text(), 0o644); err != nil {
				_ = os.Remove(args[0]) // a secret key alone would only block the next try
				return err
			}
			return a.print(map[string]string{"fingerprint": k.Fingerprint.String(), "secret": args[0], "public": args[0] + ".pub"}, func() error {
				_, err := fmt.Fprintf(a.Out, "%s: keep %s secret; devices trust %s.pub as /etc/opkg/keys/%s\n", k.Fingerprint, args[0], args[0], k.Fingerprint)
				return err
			})
		}}
	fresh.Flags().StringVar(&comment, "comment", "", "one `line` for people, not trusted")

	fingerprint := &cobra.Command{Use: "fingerprint FILE", Short: "print the fingerprint of a key or of a signature", Args: exactArgs(1, "a key or signature file"),
		RunE: func(_ *cobra.Command, args []string) error {
			text, err := readBounded(args[0])
			if err != nil {
				return err
			}
			f, kind, err := fingerprintOf(text)
			if err != nil {
				return fmt.Errorf("%s: %w", args[0], err)
			}
			return a.print(map[string]string{"fingerprint": f.String(), "kind": kind}, func() error { _, err := fmt.Fprintln(a.Out, f); return err })
		}}

	var signer, out string
	var days int
	certify := &cobra.Command{Use: "certify KEY.pub", Short: "let another key sign, for a time: writes a ucert certificate",
		Example: `  go run ./image keys certify build.key.pub --key release.key --days 365 --output build.ucert`,
		Args:    exactArgs(1, "a public key"),
		RunE: func(_ *cobra.Command, args []string) error {
			if days < 1 {
				return usageError{fmt.Errorf("--days %d: want at least 1", days)}
			}
			k, err := readSecret(signer)
			if err != nil {
				return err
			}
			public, err := trust.ReadPublicKey(args[0])
			if err != nil {
				return err
			}
			now := time.Now()
			cert := ucert.Issue(k, public, now, now.AddDate(0, 0, days))
			if err := writeNew(out, string(ucert.Chain{cert}.Encode()), 0o644); err != nil {
				return err
			}
			return a.print(map[string]string{"certificate": out, "signer": k.Fingerprint.String(), "key": public.Fingerprint.String()}, func() error {
				_, err := fmt.Fprintf(a.Out, "%s: %s may sign for %s until %s\n", out, public.Fingerprint, k.Fingerprint, cert.Certificate.ExpiresAt.UTC().Format(time.DateOnly))
				return err
			})
		}}
	certify.Flags().StringVar(&signer, "key", "", "secret key `file` of the one who lets sign")
	certify.Flags().IntVar(&days, "days", 365, "how long the certificate is valid")
	certify.Flags().StringVar(&out, "output", "", "`file` to write")
	for _, f := range []string{"key", "output"} {
		if err := certify.MarkFlagRequired(f); err != nil {
			panic(err) // BUG: the flag is defined above
		}
	}
	c.AddCommand(fresh, fingerprint, certify)
	return c
}

func fingerprintOf(text []byte) (usign.Fingerprint, string, error) {
	if k, err := usign.ParsePublicKey(text); err == nil {
		return k.Fingerprint, "public key", nil
	}
	if s, err := usign.ParseSignature(text); err == nil {
		return s.Fingerprint, "signature", nil
	}
	k, err := usign.ParseSecretKey(text)
	if err != nil {
		return usign.Fingerprint{}, "", fmt.Errorf("neither a public key nor a signature, and as a secret key: %w", err)
	}
	return k.Fingerprint, "secret key", nil
}

func (a *app) signCommand() *cobra.Command {
	var key, cert, attach, pub string
	var detached bool
	c := &cobra.Command{
		Use:   "sign FILE...",
		Short: "sign images, here or on another machine",
		Long: `sign puts a signature trailer behind each image, which stock sysupgrade and ours
check. Signing again adds a signer; stock systems look at the last one, so the key that
they know signs last. profiles.json and sha256sums in the same folder are brought up to date.

To sign on another machine, copy the image there, "sign --detached" it, bring back the small
FILE.sig and "sign --attach FILE.sig --pub KEY.pub FILE" here; what usign -S writes is taken as well.`,
		Example: `  go run ./image sign --key release.key bin/targets/x86/64/*-combined*.img.gz
  go run ./image sign --key build.key --cert build.ucert image.img.gz
  go run ./image sign --key release.key --detached image.img.gz     # writes image.img.gz.sig
  go run ./image sign --attach image.img.gz.sig --pub release.key.pub image.img.gz`,
		RunE: func(_ *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return usageError{errors.New("sign: which images?")}
			case (key == "") == (attach == ""):
				return usageError{errors.New("sign: want --key or --attach, one of them")}
			case attach != "" && (detached || len(args) != 1):
				return usageError{errors.New("sign: --attach takes one image, and no --detached")}
			case pub != "" && attach == "":
				return usageError{errors.New("sign: --pub goes with --attach")}
			}
			var chain ucert.Chain
			if cert != "" {
				b, err := readBounded(cert)
				if err != nil {
					return err
				}
				if chain, err = ucert.Parse(b); err != nil {
					return fmt.Errorf("%s: %w", cert, err)
				}
			}
			var secret *usign.SecretKey
			if key != "" {
				var err error
				if secret, err = readSecret(key); err != nil {
					return err
				}
			}
			type signed struct {
				File   string `json:"file"`
				Key    string `json:"key"`
				Output string `json:"output"`
			}
			var all []signed
			for _, file := range args {
				sig, err := signature(file, secret, attach)
				if err != nil {
					return err
				}
				if pub != "" {
					if err := fits(file, sig, pub); err != nil {
						return err
					}
				}
				out := file
				if detached {
					out = file + ".sig"
					err = writeNew(out, sig.Text(), 0o644)
				} else {
					err = attachSignature(file, append(slices.Clone(chain), ucert.Element{Signature: sig}))
				}
				if err != nil {
					return err
				}
				all = append(all, signed{file, sig.Fingerprint.String(), out})
			}
			return a.print(all, func() error {
				for _, s := range all {
					fmt.Fprintf(a.Out, "%s: signed by %s\n", s.Output, s.Key)
				}
				return nil
			})
		},
	}
	c.Flags().StringVar(&key, "key", "", "secret key `file`")
	c.Flags().StringVar(&cert, "cert", "", "certificate `file` (ucert) that lets the key sign")
	c.Flags().BoolVar(&detached, "detached", false, "write FILE.sig instead of a trailer")
	c.Flags().StringVar(&attach, "attach", "", "signature `file` made elsewhere")
	c.Flags().StringVar(&pub, "pub", "", "public key `file` to check the signature of --attach with, before it is attached")
	return c
}

// signature signs the file, or takes the signature in the file attach. Signing
// needs the whole image in memory: Ed25519 reads its message twice.
func signature(file string, secret *usign.SecretKey, attach string) (*usign.Signature, error) {
	if attach != "" {
		text, err := readBounded(attach)
		if err != nil {
			return nil, err
		}
		s, err := usign.ParseSignature(text)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", attach, err)
		}
		return s, nil
	}
	image, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return secret.Sign(image), nil
}

// fits checks a signature that came from elsewhere.
func fits(file string, sig *usign.Signature, pub string) error {
	key, err := trust.ReadPublicKey(pub)
	if err != nil {
		return err
	}
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := key.VerifyReader(f, sig); err != nil {
		return fmt.Errorf("%s stays as it is: %w", file, err)
	}
	return nil
}

// attachSignature writes the signed image beside the old one and takes its
// place, so that a full disk leaves the old one whole.
func attachSignature(file string, chain ucert.Chain) error {
	unsigned, err := sumOfImage(file)
	if err != nil {
		return err
	}
	signed := sha256.New()
	var size int64
	if err := replaceFile(file, func(dst *os.File) error {
		src, err := os.Open(file)
		if err != nil {
			return err
		}
		defer src.Close()
		w := firmware.NewWriter(io.MultiWriter(dst, signed))
		if _, err := io.Copy(w, src); err != nil {
			return err
		}
		if err := w.Append(firmware.Signature, chain.Encode()); err != nil {
			return err
		}
		size, err = dst.Seek(0, io.SeekCurrent)
		return err
	}); err != nil {
		return fmt.Errorf("sign %s: %w", file, err)
	}
	return updateIndexes(file, hex.EncodeToString(signed.Sum(nil)), unsigned, size)
}

// sumOfImage is the sha256 of everything before the first signature.
func sumOfImage(file string) (string, error) {
	f, err := os.Open(file)
	if err != nil {
		return "", err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return "", err
	}
	scan, err := firmware.Scan(f, st.Size())
	if err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	end := st.Size()
	for _, c := range scan.Chunks {
		if c.Kind == firmware.Signature {
			end = min(end, c.Offset)
		}
	}
	h := sha256.New()
	if _, err := io.Copy(h, io.NewSectionReader(f, 0, end)); err != nil {
		return "", fmt.Errorf("%s: %w", file, err)
	}
	return hex.EncodeToString(h.Sum(nil)), nil
}

// updateIndexes writes the new sums of a signed image into the profiles.json and
// sha256sums beside it, where it is listed there. sha256_unsigned is the sum
// before signing, as OpenWrt has it.
func updateIndexes(file, sum, unsigned string, size int64) error {
	name, dir := filepath.Base(file), filepath.Dir(file)

	profiles := filepath.Join(dir, "profiles.json")
	sums := map[string]string{name: sum}
	if text, err := os.ReadFile(profiles); err == nil {
		var doc map[string]any
		dec := json.NewDecoder(strings.NewReader(string(text)))
		dec.UseNumber()
		if err := dec.Decode(&doc); err != nil {
			return fmt.Errorf("%s: %w", profiles, err)
		}
		if setImageSums(doc, name, sum, unsigned, size) {
			out, err := json.Marshal(doc)
			if err != nil {
				return fmt.Errorf("%s: %w", profiles, err)
			}
			out = append(out, '\n')
			if err := replaceFile(profiles, func(f *os.File) error { _, err := f.Write(out); return err }); err != nil {
				return err
			}
			d := sha256.Sum256(out)
			sums["profiles.json"] = hex.EncodeToString(d[:])
		}
	} else if !errors.Is(err, os.ErrNotExist) {
		return err
	}

	list := filepath.Join(dir, "sha256sums")
	text, err := os.ReadFile(list)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	var out strings.Builder
	for line := range strings.Lines(string(text)) {
		if _, n, ok := strings.Cut(strings.TrimSpace(line), " *"); ok && sums[n] != "" {
			line = sums[n] + " *" + n + "\n"
		}
		out.WriteString(line)
	}
	return replaceFile(list, func(f *os.File) error { _, err := f.WriteString(out.String()); return err })
}

func setImageSums(doc map[string]any, name, sum, unsigned string, size int64) bool {
	found := false
	profiles, _ := doc["profiles"].(map[string]any)
	for _, p := range profiles {
		p, _ := p.(map[string]any)
		images, _ := p["images"].([]any)
		for _, im := range images {
			if im, ok := im.(map[string]any); ok && im["name"] == name {
				im["sha256"], im["sha256_unsigned"], im["size"] = sum, unsigned, size
				found = true
			}
		}
	}
	return found
}

// check is what verify finds out about an image.
type check struct {
	File     string        `json:"file"`
	Size     int64         `json:"size"`
	Image    int64         `json:"image_size"`
	Content  *content      `json:"content,omitempty"`
	SHA256   string        `json:"sha256"`
	Chunks   []chunkReport `json:"trailers"`
	Metadata any           `json:"metadata,omitempty"`
	Signers  []signer      `json:"signatures,omitempty"`
	Faults   []string      `json:"faults"`
	Notes    []string      `json:"notes,omitempty"`
	Valid    bool          `json:"valid"`

	info *firmware.Info
}

type chunkReport struct {
	Kind   string `json:"kind"`
	Offset int64  `json:"offset"`
	Size   int64  `json:"size"`
	CRC    string `json:"crc"`
}

type signer struct {
	Key   string `json:"key"`             // that signed the image
	Root  string `json:"root,omitempty"`  // known key that vouches for it
	Chain int    `json:"chain"`           // elements
	Fault string `json:"fault,omitempty"` // why it does not count

	Certificates []string `json:"certificates,omitempty"` // in words
}

func (a *app) verifyCommand() *cobra.Command {
	var keys string
	var required int
	c := &cobra.Command{
		Use:   "verify FILE",
		Short: "explain an image's trailers, metadata and signatures in words",
		Long: `verify checks the trailers of an image and tells what is in them. With --keys it also
says whether enough of the keys in that folder vouch for the image, as a device would decide
that has them in /etc/opkg/keys. Exit code 0: nothing wrong, 1: a fault, 2: used wrongly.`,
		Example: `  go run ./image verify bin/targets/x86/64/weft-0.1.0-x86-64-generic-squashfs-combined.img.gz
  go run ./image verify --keys my-keys --require 2 --json image.img.gz`,
		Args: exactArgs(1, "one image"),
		RunE: func(_ *cobra.Command, args []string) error {
			rep, err := verifyFile(args[0], keys, required)
			if err != nil {
				return err
			}
			if err := a.print(rep, func() error { return rep.write(a.Out) }); err != nil {
				return err
			}
			if !rep.Valid {
				return exitCode(exitFailed)
			}
			return nil
		},
	}
	c.Flags().StringVar(&keys, "keys", "", "`folder` of public keys")
	c.Flags().IntVar(&required, "require", 1, "how many different keys of --keys must vouch")
	return c
}

func verifyFile(file, keys string, required int) (*check, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	rep := &check{File: file, Size: st.Size(), Chunks: []chunkReport{}, Faults: []string{}}
	fault := func(format string, args ...any) { rep.Faults = append(rep.Faults, fmt.Sprintf(format, args...)) }
	scan, err := firmware.Scan(f, st.Size())
	if err != nil {
		fault("%v", err)
		return rep, nil
	}
	rep.Image = scan.ImageSize
	sum := sha256.New()
	whole := io.TeeReader(io.NewSectionReader(f, 0, st.Size()), sum)
	if err := scan.Verify(whole); err != nil {
		fault("%v", err)
	}
	if _, err := io.Copy(io.Discard, whole); err != nil { // what Verify has left unread
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	rep.SHA256 = hex.EncodeToString(sum.Sum(nil))
	if rep.Content, err = readContent(io.NewSectionReader(f, 0, scan.ImageSize)); err != nil {
		fault("%v", err)
	}
	for _, c := range scan.Chunks {
		rep.Chunks = append(rep.Chunks, chunkReport{c.Kind.String(), c.Offset, c.Size, fmt.Sprintf("%08x", c.CRC)})
	}
	switch info, err := scan.Info(); {
	case errors.Is(err, firmware.ErrNotFound):
		rep.Notes = append(rep.Notes, "no metadata: a system cannot tell which board the image is for")
	case err != nil:
		fault("metadata: %v", err)
	default:
		rep.Metadata, rep.info = info, info
	}
	for _, c := range scan.Chunks {
		if c.Kind != firmware.Signature {
			continue
		}
		chain, err := ucert.Parse(c.Payload)
		if err != nil {
			fault("signature at byte %d: %v", c.Offset, err)
			continue
		}
		rep.Signers = append(rep.Signers, signer{Key: chain[len(chain)-1].Signature.Fingerprint.String(), Chain: len(chain), Certificates: chainWords(chain)})
	}
	switch {
	case keys != "":
		ring, err := trust.ReadKeyring(keys, required)
		if err != nil {
			fault("%v", err)
		}
		signers, err := ring.Check(scan, f, time.Now())
		rep.Signers = nil
		for _, s := range signers {
			one := signer{Key: s.Signed.String()}
			if chain, err := ucert.Parse(scan.Chunks[s.Chunk].Payload); err == nil {
				one.Chain, one.Certificates = len(chain), chainWords(chain)
			}
			if s.Err != nil {
				one.Fault = s.Err.Error()
			} else {
				one.Root = s.Root.Fingerprint.String()
			}
			rep.Signers = append(rep.Signers, one)
		}
		if err != nil {
			fault("%v", err)
		}
	case len(rep.Signers) == 0:
		rep.Notes = append(rep.Notes, "not signed: `go run ./image sign` signs it")
	default:
		rep.Notes = append(rep.Notes, "signatures were not checked: name a folder of public keys with --keys")
	}
	rep.Valid = len(rep.Faults) == 0
	return rep, nil
}

func (c *check) write(w io.Writer) error {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-18s %s\n", name, fmt.Sprintf(format, args...))
	}
	line("file", "%s, %s, sha256 %s", c.File, size(c.Size), c.SHA256)
	line("image", "%d bytes before the trailers", c.Image)
	if c.Content != nil {
		c.Content.write(line)
	}
	for _, t := range c.Chunks {
		line("trailer", "%s at byte %d, %d bytes with its header and trailer, CRC %s", t.Kind, t.Offset, t.Size, t.CRC)
	}
	if i := c.info; i != nil {
		line("for boards", "%s (supported_devices)", strings.Join(i.Devices(), ", "))
		line("compat version", "%s: a device of another major number refuses it, of another minor number too while it keeps settings", i.CompatVersion)
		if i.CompatMessage != "" {
			line("compat message", "%s", i.CompatMessage)
		}
		line("build", "%s %s, revision %s, target %s, profile %s", i.Version.Dist, i.Version.Version, i.Version.Revision, i.Version.Target, i.Version.Board)
		line("metadata form", "%s", i.MetadataVersion)
	}
	for n, s := range c.Signers {
		what := "key " + s.Key
		switch {
		case s.Fault != "":
			what += ": does not count: " + s.Fault
		case s.Root == s.Key:
			what += ": good, the key is in the folder"
		case s.Root != "":
			what += ": good, certified by " + s.Root
		}
		line(fmt.Sprintf("signature %d", n+1), "%s", what)
		for _, words := range s.Certificates {
			line("certificate", "%s", words)
		}
	}
	for _, n := range c.Notes {
		line("note", "%s", n)
	}
	for _, f := range c.Faults {
		line("fault", "%s", f)
	}
	if c.Valid {
		line("result", "nothing wrong")
	} else {
		line("result", "do not flash this file")
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func readSecret(file string) (*usign.SecretKey, error) {
	text, err := readBounded(file)
	if err != nil {
		return nil, err
	}
	k, err := usign.ParseSecretKey(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return k, nil
}

// readBounded reads a key, signature or certificate.
func readBounded(file string) ([]byte, error) {
	f, err := os.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, firmware.MaxMetadata+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", file, err)
	}
	if len(b) > firmware.MaxMetadata {
		return nil, fmt.Errorf("%s: larger than any key, signature or certificate", file)
	}
	return b, nil
}

// writeNew writes a file that must not exist yet.
func writeNew(file, text string, mode os.FileMode) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_EXCL, mode)
	if errors.Is(err, os.ErrExist) {
		return fmt.Errorf("%s exists already: move it away first, nothing is overwritten", file)
	} else if err != nil {
		return err
	}
	defer func() {
		if cerr := f.Close(); err == nil {
			err = cerr
		}
		if err != nil {
			_ = os.Remove(file)
		}
	}()
	if _, err := f.WriteString(text); err != nil {
		return err
	}
	return f.Sync()
}

// replaceFile writes a file beside the old one and puts it in its place. The
// mode stays.
func replaceFile(file string, write func(*os.File) error) (err error) {
	st, err := os.Stat(file)
	if err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(file), "."+filepath.Base(file)+".*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			_ = tmp.Close()
			_ = os.Remove(tmp.Name())
		}
	}()
	if err := write(tmp); err != nil {
		return err
	}
	if err := tmp.Chmod(st.Mode().Perm()); err != nil {
		return err
	}
	if err := tmp.Sync(); err != nil {
		return err
	}
	if err := tmp.Close(); err != nil {
		return err
	}
	return os.Rename(tmp.Name(), file)
}
