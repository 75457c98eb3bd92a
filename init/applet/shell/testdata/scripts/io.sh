# Redirections, descriptors, read, getopts, exec.
exec 3>out3; echo to3 >&3; echo more 1>&3; exec 3>&-; cat out3
{ echo o; echo e >&2; } >o 2>e; cat o e
{ echo o; echo e >&2; } >oe 2>&1; cat oe; echo app >>oe; cat oe
echo hi >a; read x <a; echo $x; cat <a - <a | head -1
exec 4<a 5>b; read y <&4; echo "$y" >&5; exec 4<&- 5>&-; cat b
exec 6>&1; exec >c; echo in c; exec >&6 6>&-; cat c
ls /nonexistent 2>/dev/null || echo failed; echo x >/nonexistent/y 2>/dev/null || echo nowrite
read l1; read a b; echo "[$l1] [$a] [$b]"; while read r; do echo "r $r"; done
printf 'a:b:c\nx y z\n\\back\\slash\n' >f
{ IFS=: read p q; echo "$p|$q"; read p q; echo "$p|$q"; read -r p; printf '%s\n' "$p"; read p; echo $?; } <f
printf '  lead trail  \n' | { read v; echo "<$v>"; }; printf '  lead  \n' | { IFS= read -r v; echo "<$v>"; }
printf 'no newline' | { read v; echo "$? <$v>"; }
opts() { OPTIND=1; while getopts ab:c o "$@"; do echo "$o:$OPTARG"; done; shift $((OPTIND-1)); echo "rest $*"; }
opts -a -b val -c x y; opts -abval z; opts -a -- -b; opts -ac
o() { while getopts :x:y o "$@"; do echo "$o:$OPTARG"; done; }; OPTIND=1; o -x; OPTIND=1; o -q
echo a >t1; echo bb >>t1; wc -l <t1 | tr -d ' '; (cat; echo end) <t1; cat <<A - <<B
first
A
second
B
f() { cat; }; echo piped | f; f <<E
heredoc $((2*3))
E
echo "x" | tr x y | tr y z; echo $?; false | true; echo $?; true | false; echo $?
umask 027; umask; touch m; ls -l m | cut -c1-10; umask 022
set -C; echo 1 >clob; (echo 2 >clob) 2>/dev/null || echo noclobber; echo 3 >|clob; cat clob; set +C
cd /tmp; cd /; pwd; cd - >/dev/null; pwd; cd / && (cd /usr; pwd); pwd; cd ..; pwd
: >/dev/null; echo done >/dev/stderr 2>/dev/null; command -v cat >/dev/null && echo have; command -v nosuch || echo nohave $?
nosuchcmd 2>/dev/null; echo $?; /etc/passwd 2>/dev/null; echo $?
exec sh -c 'echo replaced "$0" "$1"' zero one
