package firewall

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/tools/txtar"

	"weft/services/firewall/ruleset"
)

// inside does what the environment asks for, as a child in a network namespace
// of its own, and says whether it was asked.
func inside() bool {
	words := strings.Split(os.Getenv("WEFT_TEST_INSIDE"), "\n")
	if words[0] == "" {
		return false
	}
	if err := insideDo(words[0], words[1:]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	return true
}

func run(args ...string) error {
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, out)
	}
	return nil
}

func insideDo(what string, args []string) error {
	switch what {
	case "service":
		return serviceInside(args[0])
	case "refused":
		return refusedInside()
	case "fw4":
		return runFW4(append([]string{what}, args...))
	case "serve":
		return serveForever(args[0], strings.Fields(args[1]))
	case "ask":
		for _, a := range strings.Fields(args[1]) {
			fmt.Println(askOnce(args[0], a))
		}
		return nil
	case "talk":
		return talk(args[0], args[1])
	}
	if err := run("ip", "link", "add", "br-lan", "type", "veth", "peer", "name", "eth1"); err != nil {
		return err
	}
	data, err := txtar.ParseFile(args[0])
	if err != nil {
		return err
	}
	var t testing.T
	in := archive{args[0], data}.input(&t)
	in.Devices = nil // no flowtable: not every kernel has them
	rs := Build(in).Ruleset
	var k ruleset.Kernel
	switch what {
	case "nft":
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rs.Text())
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("nft -f: %w: %s", err, out)
		}
	case "kernel":
		err = k.Replace(rs)
	case "twice":
		// Over what nft has made, over what we have made, and as a new process.
		cmd := exec.Command("nft", "-f", "-")
		cmd.Stdin = strings.NewReader(rs.Text())
		if out, xerr := cmd.CombinedOutput(); xerr != nil {
			return fmt.Errorf("nft -f: %w: %s", xerr, out)
		}
		err = errors.Join(k.Replace(rs), k.Replace(rs), new(ruleset.Kernel).Replace(rs))
	}
	if err != nil {
		return err
	}
	out, err := exec.Command("nft", "list", "ruleset").Output()
	fmt.Print(string(out))
	return err
}
