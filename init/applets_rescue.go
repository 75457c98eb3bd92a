//go:build rescue

package main

import (
	"context"
	"fmt"
	"net"
	"os"

	"golang.org/x/crypto/ssh"

	"weft/init/rescue"
	"weft/init/unit"
	"weft/services/sshd"
)

// applets is what the rescue system has: its own program and the tools.
var applets = append([]applet{{rescue.Program, runRescue, plain}}, tools...)

// tools are the everyday commands, and what SSH clients ask for.
var tools = append([]applet{
	{"/usr/bin/scp", sshd.SCP, plain},
	{sshd.SFTPServer, sshd.SFTP, plain},
	{"/sbin/reboot", rescue.Reboot, device},
}, everyday...)

// runRescue gives the rescue system the SSH server, which as a service may be
// named by main alone.
func runRescue(ctx context.Context, c *unit.Call) int {
	var paths []string
	for _, a := range tools {
		paths = append(paths, a.path)
	}
	return rescue.Run(ctx, c, serveSSH, paths)
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

// root is not reached: stage 1 starts this program as a child.
func root() int {
	fmt.Fprintln(os.Stderr, "init: this is the program of the rescue system; stage 1 starts it")
	return 1
}
