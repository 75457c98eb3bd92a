#oracle busybox
# What busybox ash has beyond POSIX.
x=abcabc; echo ${x/b/X} ${x//b/X} ${x:1:2} ${x:3} ${x//b}
[[ $x == abc* ]] && echo glob; [[ -n $x && ! -z $x ]] && echo and
echo -e 'a\tb\x41\0101'; echo -n no; echo; echo -ne 'c\n'; echo 'raw\n'; echo -e 'stop\chere'; echo
printf '%s-%s\n' a b c; printf '%5d|%-5d|%05d|%x|%X|%o|%c|%%\n' 42 42 42 255 255 8 xyz; printf '%b|%s\n' 'a\tb' 'a\tb'; printf '%.2s|%6.3s|\n' abcdef abcdef; printf '%d\n' 0x10 010 "'A"; printf '\101\x42\n'; printf '%s\n'; printf '%*d\n' 5 42
function kw { echo kw $1; }; kw a
echo $'a\tb\'c'; read -n 2 c <<E
xyz
E
echo "$c"
export EXP=1; export -n EXP; env | grep -c '^EXP='; export A=1 B; env | grep '^A='
readonly RO=1; (RO=2) 2>/dev/null; echo $?; 
f() { local a b=2 c; echo "${a-unset} $b"; }; a=1; f; echo $a
source /dev/stdin <<E
echo sourced
E
type cd | head -1; type f | head -1; command -v f; command -v nosuch; echo $?
y=1; let y=y+4; echo $y; let 0; echo $?
set -o pipefail; false | true; echo $?; set +o pipefail
echo a{b,c}d {1..3}
alias ll='echo alias'; 
echo $((n=5)) $((n++)) $n $((--n))
true &> /dev/null; ls /nonexistent &>/dev/null; echo $?
read -t 1 z <<E
timed
E
echo $z; umask -S; (umask 077; umask); umask
trap 'echo int' INT; trap; trap - INT; trap 'echo bye' EXIT
m=n; n=4; echo $((m+1))
kill -l 9; ulimit -n >/dev/null && echo ulimit; echo $- | tr -d s; test -t 0; echo $?
