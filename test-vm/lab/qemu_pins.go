package lab

import (
	"context"
	"fmt"
	"os"
	"sync"

	"weft/image/pins"
)

// store is the pinned packages, opened once; downloads show on stderr.
var store = sync.OnceValues(func() (*pins.Store, error) {
	return pins.Open(pins.Options{Progress: os.Stderr})
})

// pinnedQEMU is QEMU and its firmware from the pinned packages, run from the cache.
func pinnedQEMU(ctx context.Context, a arch) (*QEMU, error) {
	s, err := store()
	if err != nil {
		return nil, err
	}
	tool, err := s.Tool(ctx, a.program)
	if err != nil {
		return nil, err
	}
	q := &QEMU{Source: "pinned", Path: tool.Path(), command: tool.Command}
	q.findOVMF(tool.Dir())
	return q, nil
}

// PinnedTool is the command of a pinned tool, mcopy for example.
func PinnedTool(ctx context.Context, name string) (*pins.Tool, error) {
	s, err := store()
	if err != nil {
		return nil, err
	}
	tool, err := s.Tool(ctx, name)
	if err != nil {
		return nil, fmt.Errorf("pinned tool: %w", err)
	}
	return tool, nil
}

// PinnedKernel is the unpacked package of the kernel that images are built with.
func PinnedKernel(ctx context.Context, goarch string) (string, error) {
	s, err := store()
	if err != nil {
		return "", err
	}
	return s.Unpack(ctx, "kernel:"+goarch)
}
