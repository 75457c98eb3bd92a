// Package boot is the last word on an image: its tests boot what `make image` built and look at it as a user would.
//
// `make boot-test` runs them; WEFT_BIN_DIR and WEFT_BOARD choose another image than bin/ and x86-64. At most two
// machines run at a time. Figures (boot times, memory) are printed and kept in test-vm/out/report.txt, not asserted;
// what a failed test's machine had to say is in test-vm/out/<test>/.
package boot
