// Package upgradetest is the last word on upgrades: its tests upgrade running guests, as a user does, to systems that are
// good and to systems that are not, and cut the power.
//
// `make upgrade-test` runs them on what `make image` has built (WEFT_BIN_DIR and WEFT_BOARD choose another one). At most two
// guests run at a time. WEFT_POWER_CUTS and WEFT_POWER_SEED choose how many power cuts there are and which; what a failed
// test's guest had to say is in test-vm/out/<test>/.
package upgradetest
