// Package sbom writes the software bill of materials of an image in CycloneDX
// form: the Go modules of the device program, the Debian packages whose files
// are in the image, the kernel with its modules, and the boot loaders.
//
// The document is deterministic: sorted, its time the build's epoch, its serial
// number derived from its content.
package sbom

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"debug/buildinfo"
	"fmt"
	"net/url"
	"slices"
	"strings"
	"time"

	cdx "github.com/CycloneDX/cyclonedx-go"
)

// Package is a Debian package that the image has something of.
type Package struct {
	Name, Version, Arch, Source, SHA256 string
	Licence                             string   // short names of its copyright file
	Suite                               string   // trixie, trixie-security …
	Files                               []string // paths in the image
	Role                                string   // what it is there for: "files", "kernel", "boot loader"
}

// Module is a kernel module in the image.
type Module struct{ Name, License string }

// Input is what an SBOM describes.
type Input struct {
	Dist, Version, Revision, Board, Role string
	Epoch                                int64
	Program                              string // device program, a Go binary
	Packages                             []Package
	Modules                              []Module // of the package with Role "kernel"
}

// Write returns the document as JSON.
func Write(in Input) ([]byte, error) {
	info, err := buildinfo.ReadFile(in.Program)
	if err != nil {
		return nil, fmt.Errorf("write the SBOM: read the Go modules of %s: %w", in.Program, err)
	}
	return write(in, info)
}

func write(in Input, info *buildinfo.BuildInfo) ([]byte, error) {
	bom := cdx.NewBOM()
	root := cdx.Component{
		BOMRef: "image", Type: cdx.ComponentTypeFirmware, Name: strings.ToLower(in.Dist) + "-" + in.Board + "-" + in.Role,
		Version: in.Version, Properties: &[]cdx.Property{{Name: "weft:revision", Value: in.Revision}},
	}
	bom.Metadata = &cdx.Metadata{
		Timestamp: time.Unix(in.Epoch, 0).UTC().Format(time.RFC3339),
		Component: &root,
		Tools:     &cdx.ToolsChoice{Components: &[]cdx.Component{{Type: cdx.ComponentTypeApplication, Name: "weft image", Version: in.Version}}},
	}
	var comps []cdx.Component
	program := cdx.Component{BOMRef: "init", Type: cdx.ComponentTypeApplication, Name: "weft", Version: in.Version,
		Licenses: licences("Apache-2.0"), PackageURL: "pkg:golang/" + info.Main.Path,
		Properties: &[]cdx.Property{{Name: "weft:path", Value: "/sbin/init"}}}
	comps = append(comps, program)
	programNeeds := []string{}
	std := "pkg:golang/std@" + strings.TrimPrefix(info.GoVersion, "go")
	comps = append(comps, cdx.Component{BOMRef: std, Type: cdx.ComponentTypeLibrary, Name: "std", Version: strings.TrimPrefix(info.GoVersion, "go"),
		PackageURL: std, Licenses: licences("BSD-3-Clause")})
	programNeeds = append(programNeeds, std)
	for _, m := range info.Deps {
		for m.Replace != nil {
			m = m.Replace
		}
		purl := "pkg:golang/" + m.Path + "@" + m.Version
		c := cdx.Component{BOMRef: purl, Type: cdx.ComponentTypeLibrary, Name: m.Path, Version: m.Version, PackageURL: purl}
		if m.Sum != "" {
			c.Properties = &[]cdx.Property{{Name: "weft:go.sum", Value: m.Sum}}
		}
		comps = append(comps, c)
		programNeeds = append(programNeeds, purl)
	}
	needs := []string{"init"}
	for _, p := range in.Packages {
		c := p.component()
		if p.Role == "kernel" {
			c.Type = cdx.ComponentTypeOS
			var mods []cdx.Component
			for _, m := range in.Modules {
				mods = append(mods, cdx.Component{BOMRef: "module/" + m.Name, Type: cdx.ComponentTypeDeviceDriver, Name: m.Name, Version: p.Version, Licenses: licences(m.License)})
			}
			slices.SortFunc(mods, func(a, b cdx.Component) int { return cmp.Compare(a.Name, b.Name) })
			if len(mods) > 0 {
				c.Components = &mods
			}
		}
		comps = append(comps, c)
		needs = append(needs, c.BOMRef)
	}
	slices.SortFunc(comps, func(a, b cdx.Component) int { return cmp.Compare(a.BOMRef, b.BOMRef) })
	slices.Sort(needs)
	slices.Sort(programNeeds)
	bom.Components = &comps
	bom.Dependencies = &[]cdx.Dependency{{Ref: "image", Dependencies: &needs}, {Ref: "init", Dependencies: &programNeeds}}

	text, err := encode(bom)
	if err != nil {
		return nil, err
	}
	sum := sha256.Sum256(text)
	id := sum[:16]
	id[6], id[8] = id[6]&0x0f|0x80, id[8]&0x3f|0x80 // RFC 9562 version 8: of our own making
	bom.SerialNumber = fmt.Sprintf("urn:uuid:%x-%x-%x-%x-%x", id[:4], id[4:6], id[6:8], id[8:10], id[10:])
	return encode(bom)
}

func (p Package) component() cdx.Component {
	q := url.Values{"arch": {p.Arch}}
	if p.Suite != "" {
		q.Set("distro", "debian-"+p.Suite)
	}
	purl := "pkg:deb/debian/" + purlPart(p.Name) + "@" + purlPart(p.Version) + "?" + q.Encode()
	c := cdx.Component{BOMRef: "deb/" + p.Name, Type: cdx.ComponentTypeLibrary, Name: p.Name, Version: p.Version, PackageURL: purl, Licenses: licences(p.Licence),
		Properties: &[]cdx.Property{{Name: "weft:for", Value: p.Role}, {Name: "weft:source", Value: p.Source}}}
	if p.SHA256 != "" {
		c.Hashes = &[]cdx.Hash{{Algorithm: cdx.HashAlgoSHA256, Value: p.SHA256}}
	}
	if len(p.Files) > 0 {
		var where []cdx.EvidenceOccurrence
		for _, f := range p.Files {
			where = append(where, cdx.EvidenceOccurrence{Location: "/" + strings.TrimPrefix(f, "/")})
		}
		slices.SortFunc(where, func(a, b cdx.EvidenceOccurrence) int { return cmp.Compare(a.Location, b.Location) })
		c.Evidence = &cdx.Evidence{Occurrences: &where}
	}
	return c
}

// purlPart encodes a part of a package URL: what a URL path needs, and the plus
// sign, which the purl specification does not leave as it is.
func purlPart(s string) string { return strings.ReplaceAll(url.PathEscape(s), "+", "%2B") }

// licences returns the named licences; the names are the source's, which need
// not be SPDX identifiers.
func licences(names string) *cdx.Licenses {
	var out cdx.Licenses
	for n := range strings.SplitSeq(names, ",") {
		if n = strings.TrimSpace(n); n != "" {
			out = append(out, cdx.LicenseChoice{License: &cdx.License{Name: n}})
		}
	}
	if len(out) == 0 {
		return nil
	}
	return &out
}

func encode(bom *cdx.BOM) ([]byte, error) {
	var b bytes.Buffer
	enc := cdx.NewBOMEncoder(&b, cdx.BOMFileFormatJSON)
	enc.SetEscapeHTML(false)
	if err := enc.EncodeVersion(bom, cdx.SpecVersion1_6); err != nil {
		return nil, fmt.Errorf("write the SBOM: %w", err)
	}
	return append(bytes.TrimSpace(b.Bytes()), '\n'), nil
}
