package boot

import "regexp"

// chooseFailsafeEntry switches on and takes the second entry of GRUB's menu on the serial console.
func (v *vm) chooseFailsafeEntry() {
	v.t.Helper()
	ctx := bound(v.t, bootBound)
	if err := v.Start(ctx); err != nil {
		v.t.Fatal(err)
	}
	if _, err := v.Serial().WaitText(ctx, regexp.MustCompile(`failsafe\)`)); err != nil {
		v.t.Fatal(err)
	}
	// Cursor down, as a VT100 sends it, then Enter.
	if _, err := v.Serial().Write([]byte("\x1b[B\r")); err != nil {
		v.t.Fatal(err)
	}
}
