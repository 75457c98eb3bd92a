// Package uci reads, stages and writes LEDE/OpenWrt configuration files.
//
// A [Tree] stands for a configuration folder (/etc/config), the folder in which
// changes are staged (/tmp/.uci) and an override folder (/var/run/uci). Load
// gives a [Package] as it would look if all staged changes were committed;
// Stage appends changes to the delta file of a package; Commit writes them.
//
// File grammar, names of unnamed sections, delta lines and the written form are
// those of upstream's libuci, so that both can work on the same files. On top
// of upstream:
//
//   - comments survive a commit: a comment goes where the section, option or
//     list value goes that it stands at, and is removed together with it; a
//     block of comment lines set off by blank lines stays in the file;
//   - a commit is durable and all or nothing: temporary file, fsync, rename,
//     fsync of the folder; staged changes are dropped only after that;
//   - two commits, or a commit and a Stage, at the same time lose nothing;
//   - input is bounded: see [MaxSize] and [MaxEntries].
//
// Not supported: backends other than files, and hooks.
package uci
