package firmware

import (
	"encoding/json"
	"fmt"
)

// Info is the metadata JSON that says what an image is for
// (openwrt include/image-commands.mk, append-metadata).
type Info struct {
	MetadataVersion string `json:"metadata_version"`
	CompatVersion   string `json:"compat_version"`
	CompatMessage   string `json:"compat_message,omitempty"`
	// SupportedDevices are the board names that may flash the image. When
	// CompatVersion is not 1.0 it holds one sentence for people instead, so
	// that old systems refuse, and the names are in NewSupportedDevices.
	SupportedDevices    []string `json:"supported_devices"`
	NewSupportedDevices []string `json:"new_supported_devices,omitempty"`
	Version             Version  `json:"version"`
}

// Version names the build.
type Version struct {
	Dist     string `json:"dist"`
	Version  string `json:"version"`
	Revision string `json:"revision"`
	Target   string `json:"target"` // "x86/64"
	Board    string `json:"board"`  // profile id
}

// NewInfo returns metadata for the devices. A compat version other than 1.0
// needs a message that tells the owner of an older system what to do.
func NewInfo(devices []string, compat, message string, v Version) *Info {
	i := &Info{MetadataVersion: "1.1", CompatVersion: compat, CompatMessage: message, SupportedDevices: devices, Version: v}
	if compat != "1.0" {
		i.NewSupportedDevices = devices
		warning := fmt.Sprintf("%s %s: image version mismatch: image %s, device 1.0. %s", v.Dist, v.Version, compat, message)
		i.SupportedDevices = []string{warning}
	}
	return i
}

// Devices returns the board names whichever key holds them.
func (i *Info) Devices() []string {
	if i.CompatVersion != "" && i.CompatVersion != "1.0" {
		return i.NewSupportedDevices
	}
	return i.SupportedDevices
}

// Encode returns the JSON text, the same for the same Info.
func (i *Info) Encode() ([]byte, error) {
	text, err := json.Marshal(i)
	if err != nil {
		return nil, fmt.Errorf("encode the image metadata: %w", err)
	}
	return append(text, '\n'), nil
}

// ParseInfo reads metadata JSON. Unknown keys are allowed: vendors add some.
func ParseInfo(text []byte) (*Info, error) {
	var i Info
	if err := json.Unmarshal(text, &i); err != nil {
		return nil, fmt.Errorf("parse the image metadata: %w", err)
	}
	if i.CompatVersion == "" {
		i.CompatVersion = "1.0"
	}
	return &i, nil
}

// Info returns the file's metadata, ErrNotFound if it has none.
func (f *File) Info() (*Info, error) {
	text, err := f.Payload(Metadata)
	if err != nil {
		return nil, err
	}
	return ParseInfo(text)
}
