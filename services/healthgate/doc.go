// Package healthgate decides whether a slot on trial stays.
//
// After an upgrade the boot loader starts the new slot on trial. The gate watches
// until everything that it asks for has held without a break for a set time, and
// then confirms the slot; if that does not happen by a deadline it says which check
// failed, gives the slot up and reboots into the old one, once. See README.md.
//
// The decision is gate, which knows neither clock nor kernel; observer asks the
// bus and the network, judge writes the slot state and reboots.
package healthgate
