// Package vi is a small vi: enough to edit configuration over a serial line.
//
// Normal mode: h j k l, arrows, w b e W B E, 0 ^ $, gg G nG, f F t T ; , %, H M L,
// Ctrl-F B D U, PgUp PgDn, i a I A o O R, x X D C s S J r ~, d c y > < with a
// motion or doubled, p P Y, u and Ctrl-R, ., / ? n N, ZZ ZQ; counts before
// commands and motions.
//
// Command line: :w :q :wq :x :e :r with ! and file names, :N, :d, :set nu,
// ranges (N,M . $ %) and :s/RE/TEXT/g. RE is Go's syntax (RE2, golang.org/s/re2syntax),
// not the basic one of POSIX; in TEXT & and \1 to \9 stand for what matched.
//
// A file is written to a temporary file beside it, synced and renamed over it, so
// that a power cut leaves the old or the new text, whole. Its mode and owner are
// kept, links are followed. Bytes that are no UTF-8 are shown as \xNN and
// written back as they were. A file with NUL bytes or above 16 MiB is refused.
//
// Not here: marks, named registers, macros, split windows, :!command.
package vi
