package carrier

import (
	"io"
	"net"
	"os"
)

func fdFile(fd int) *os.File { return os.NewFile(uintptr(fd), "trunk") }

func readFull(c net.Conn, b []byte) (int, error) { return io.ReadFull(c, b) }
