// Package shell is the sh of the device.
//
// The parser is mvdan.cc/sh's; expansion and execution are this package's own,
// because scripts written for ash depend on what that module's interpreter does
// not have: real process ids in $!, any descriptor number, traps, subshells for
// every part of a pipeline, empty fields between separators, export -n, umask,
// ulimit, job control.
//
// What runs: POSIX sh, plus what busybox ash has and LEDE's scripts use: local,
// [[ ]], ${x/a/b}, ${x:1:2}, $'..', <<<, &>, source, function f { }, read -t -n -s
// -p -d -u, echo -e -n, printf, let, (( )), for ((;;)), set -o pipefail, LINENO,
// RANDOM, aliases. Options: -a -C -c -e -f -i -l -m -n -o -s -u -v -x.
//
// In scripts, applets marked inline run inside the shell's process; others, and
// everything typed at a prompt, are processes. { ...; } &, f & and the like start
// this binary again with the shell's state.
//
// Limits, told honestly:
//   - no arrays, no process substitution, no [[ =~ ]], no select, no coproc, no
//     brace expansion, no extended globs: ash has none of them either, save for
//     the first use of a name as an array, which here is an error and not a word
//   - ((a)||(b)) at the start of a command is arithmetic: write ( (a) || (b) )
//   - an alias is put in when its command runs, so it cannot open a quote or a block
//   - foreground subshells and the parts of a pipeline share the process: umask is
//     put back, ulimit is not; $PPID and /proc/self are the main shell's; a signal
//     to $$ reaches the main shell
//   - a trap set in a foreground ( ) runs there on EXIT only
//   - the shell does not keep its working directory busy: a file system it
//     "stands" in can be unmounted
//   - history search (Ctrl-R) and fc are missing
package shell
