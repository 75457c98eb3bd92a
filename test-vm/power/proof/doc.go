// Package proof shows that no power cut costs a device its system or its settings.
//
// Record has a guest do once, for real and through its boot loader, what writes to a disk: a commit of the settings, an
// upgrade, the confirmation by the health gate, another commit, a rollback, a factory reset. Package power keeps every
// write. Judge then boots the disk as a cut at any moment leaves it and asks of the system: it comes up by itself within
// the tries that the boot loader has, its settings are whole, the old ones or the new ones and never older than what was
// confirmed to the user, and its slot state makes sense.
//
// A cut is named by the number of the write, the mode and the seed (power.Cut): together with the folder of the recording
// that is all it takes to see a failure again.
package proof
