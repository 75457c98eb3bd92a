#exit 3
# Control flow, functions, pipelines in subshells, set -e.
f() { echo "f:$1:$#"; return 4; echo no; }
f a b; echo $?
if f x >/dev/null; then echo yes; else echo no $?; fi
for i in 1 2 3 4 5; do [ $i = 2 ] && continue; [ $i = 4 ] && break; echo i$i; done
for i in 1 2; do for j in 1 2; do [ $j = 2 ] && continue 2; echo $i$j; done; done
for i in 1 2; do for j in 1 2; do break 2; done; done; echo $i$j
i=0; while [ $i -lt 3 ]; do i=$((i+1)); done; echo $i; until [ $i = 0 ]; do i=$((i-1)); done; echo $i
for a; do echo "arg $a"; done
echo one | { read x; echo "in:$x"; exit 5; }; echo "st $? x=$x"
printf 'a\nb\n' | while read l; do n=$l; [ $l = b ] && exit 7; done; echo "st $? n=$n"
g() { echo x | while read l; do return 9; done; echo "g $?"; }; g
(exit 6); echo $?; (x=sub; echo $x); echo "x=$x"
! true; echo $?; ! false; echo $?
true && false || echo or; false && echo no; echo $?
{ echo block; } ; x=$(f q; echo "in $?"); echo "$x"
x=$(exit 8); echo $?; y=1 x=$(exit 2) ; echo $?
local_test() { local v=in w; v=in2; w=set; inner; echo "l:$v"; }; inner() { echo "i:$v"; v=changed; }
v=out; local_test; echo "$v"; [ -z "${w+x}" ] && echo unset
rec() { [ $1 -gt 0 ] || return 0; local n=$1; rec $((n-1)); echo $n; }; rec 3
case $(uname) in Linux) echo lin;; *) echo other;; esac
set -- a b c; shift; echo "$1 $#"; shift 2; echo $#
eval "z='q q'; echo \"\$z\""; eval; echo $?
(set -e; false; echo no); echo $?
(set -e; if false; then :; fi; false || true; ! true; echo alive; f() { false; echo infn; }; f || echo orr; false; echo no); echo $?
(set -e; x=$(false); echo no); echo $?
(set -e; false | true; echo pipe); (set -u; echo "${nope}"; echo no) 2>/dev/null; echo $?
(set -e; { false; echo no; } ; echo no2); echo $?
trap 'echo trap $?' EXIT
(trap 'echo sub' EXIT; exit 1); echo $?
[ 1 -eq 1 ] && [ a = a -a b != c ] && [ ! -e /nonexistent ] && [ -d / ] && [ "" = "" ] && echo tests
[ ] ; echo $?; [ x ]; echo $?; [ -n "" ]; echo $?; test 2 -gt 10; echo $?; [ a -eq 1 ] 2>/dev/null; echo $?
exit 3
