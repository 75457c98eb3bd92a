// Probe is what the lab's checks run on a node, guest or namespace: servers that misbehave on purpose, clients that say
// what they saw, streams of datagrams that are counted and timed. Results go to standard output as one JSON object.
//
//	lab-probe start SCRIPT               run a shell script in the background, print its number
//	lab-probe result N                   print its exit status and output, or "running"
//	lab-probe stop N                     kill it and what it started
//	lab-probe tcp-server ADDR PORT       serve the cases of a tcp check on PORT and the ports behind it
//	lab-probe tcp-client ADDR PORT OWN CASE...
//	lab-probe flow-server ADDR PORT
//	lab-probe flow-client ADDR PORT COUNT BYTES up|down
//	lab-probe packet-server NET ADDR     NET is udp:PORT or ip:PROTOCOL
//	lab-probe packet-client NET ADDR RATE SIZE DURATION up|down|both
//	lab-probe sctp-server ADDR PORT
//	lab-probe sctp-client ADDR PORT BYTES
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"
)

func main() {
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintf(os.Stderr, "lab-probe: %v\n", err)
		os.Exit(1)
	}
}

var errUsage = errors.New("wrong use; the verbs are in the comment at the top of test-vm/probe/main.go")

func run(args []string) error {
	if len(args) < 2 {
		return errUsage
	}
	verb, args := args[0], args[1:]
	number := func(i int) int {
		n, err := strconv.Atoi(args[i])
		if err != nil {
			return -1
		}
		return n
	}
	enough := map[string]int{"start": 1, "supervise": 2, "result": 1, "stop": 1, "tcp-server": 2, "tcp-client": 4, "flow-server": 2, "flow-client": 5,
		"packet-server": 2, "packet-client": 6, "sctp-server": 2, "sctp-client": 3}
	if n, ok := enough[verb]; !ok || len(args) < n {
		return errUsage
	}
	switch verb {
	case "start":
		return start(args[0])
	case "supervise":
		return supervise(args[0], args[1])
	case "result":
		return result(args[0])
	case "stop":
		return stop(args[0])
	case "tcp-server":
		return tcpServer(args[0], number(1))
	case "tcp-client":
		return tcpClient(args[0], number(1), args[2], args[3:])
	case "flow-server":
		return flowServer(args[0], number(1))
	case "flow-client":
		return flowClient(args[0], number(1), number(2), number(3), args[4])
	case "packet-server":
		return packetServer(args[0], args[1])
	case "packet-client":
		d, err := time.ParseDuration(args[4])
		if err != nil {
			return err
		}
		return packetClient(args[0], args[1], number(2), number(3), d, args[5])
	case "sctp-server":
		return sctpServer(args[0], number(1))
	}
	return sctpClient(args[0], number(1), number(2))
}

func print(v any) error { return json.NewEncoder(os.Stdout).Encode(v) }
