// Command program is the rescue system's program: package rescue with the SSH
// server. It is not the device binary, because what that has besides stands ready in
// the initramfs already, where the commands of its shell come from.
package main

import (
	"context"
	"net"
	"os"
	"path/filepath"

	"golang.org/x/crypto/ssh"

	"weft/init/rescue"
	"weft/init/unit"
	"weft/services/sshd"
)

// names are what the program can be called by, and where a shell finds it.
var names = map[string]struct {
	path string
	run  unit.Func
}{
	"scp":                          {"/usr/bin/scp", sshd.SCP},
	filepath.Base(sshd.SFTPServer): {sshd.SFTPServer, sshd.SFTP},
	"reboot":                       {"/sbin/reboot", rescue.Reboot},
}

func main() {
	c := unit.OSCall()
	ctx := context.Background()
	if n, ok := names[filepath.Base(c.Args[0])]; ok {
		os.Exit(n.run(ctx, c))
	}
	var paths []string
	for _, n := range names {
		paths = append(paths, n.path)
	}
	os.Exit(rescue.Run(ctx, c, serveSSH, paths))
}

func serveSSH(ctx context.Context, ln net.Listener, s rescue.SSHSettings) error {
	keys := sshd.LoadHostKeys(s.Log, s.HostKeys...)
	if len(keys) == 0 {
		key, err := sshd.NewHostKey("", "ed25519")
		if err != nil {
			return err
		}
		keys = []ssh.Signer{key}
	}
	local := &sshd.Local{Etc: s.Etc, Keys: s.AuthorizedKeys, Passwords: true, RootPasswords: true, RootLogin: true, Blank: s.Blank, Shell: s.Shell, Log: s.Log}
	return sshd.Serve(ctx, ln, sshd.Config{HostKeys: keys, Backend: local.For, Passwords: true, Banner: s.Banner, Log: s.Log})
}
