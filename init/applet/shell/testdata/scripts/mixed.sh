#exit 2
#oracle busybox
# A little of everything that once differed between shells.
x='a  b'; y='"q"'; echo "${n:-"$x"}" ${n:-"$x"} ${x:+"set $y"} "${x:+'s'}" "${n:-'s q'}" ${n:-'s q'}
echo "${n:-a\}b}" "${n:-$(echo "in }")}" 
f() { cat <<E1; cat <<'E2'
one $1 $(echo sub)
E1
two $1
E2
}; f arg
printf 'l1\nl2\nl3\n' | while read l; do [ $l = l2 ] && break; echo $l; done; echo "st $?"
printf 'a\nb\n' > t; while read l; do read m; echo "$l-$m"; done < t
g() { while read l; do echo "g:$l"; done; }; g <<E
x
y
E
(exec echo replaced; echo no); echo after
h() { trap 'echo exit-trap' EXIT; echo in h; }; (h; echo still); echo done
set -- a 'b c' "" d; for i; do echo "<$i>"; done; for i in "$@"; do printf '[%s]' "$i"; done; echo; echo $#
set -- $x; echo $#; set -- ; echo "$#-$*"
case "" in *) echo any;; esac; case x in y) ;; esac; echo $?; case ab in a*|b) echo or;; esac; case '[' in '[') echo br;; esac
v=1; k() { v=k; }; v=3 k; echo $v
a=$(false) || echo "cs failed $?"; a=x$(exit 3)y; echo "$? $a"
true; echo $(( 010 + 0x10 )) $(( 1 ? 2 : 3 )) $((2**3 == 8)) 2>/dev/null
until false; do echo once; break; done; while :; do while :; do break 2; done; echo no; done; echo out
i=5; while [ $((i-=1)) -gt 0 ]; do continue; done; echo $i
{ echo a; echo b >&2; } 2>&1 | sort; echo x | (read a; echo $a); echo ${PWD##*/} | wc -l | tr -d ' '
eval 'for q in 1 2; do echo "q=$q"; done' | tail -1; eval "echo \$x" '"$y"'
[ -n "$x" -a "$y" != "" ] && echo and; [ ! "$n" ] && echo notn; [ "$x" = "a  b" ] && echo eq; test -d / -a -e /etc && echo de
l() { local IFS=:; set -- $1; echo "$2"; }; l a:b:c; echo "$IFS" | od -c | head -1
IFS=, read a b c <<E
1,2,3,4
E
echo "$a|$b|$c"; IFS=' ,'; s='a, b ,c'; for w in $s; do printf '<%s>' "$w"; done; echo; unset IFS
echo "a
b" | { IFS= read -r x; echo "$x"; cat; }
echo 'back\slash' "tab\there" \\ "\\" '\\' "\$" "\q"
m() { return; }; false; m; echo $?; true; m; echo $?
if ! false; then echo neg; fi; ! { false; }; echo $?
type_test=$(command -v echo); echo $type_test; command echo cmd; command -v nosuch || echo none
: ${D:=default}; echo $D; echo ${D%ault} ${D#de} ${#D}
(set -e; f() { false; echo "not here"; }; if f; then echo cond; fi; f; echo no); echo "e $?"
(set -u; echo ${u-ok} ${#}; : $u; echo no) 2>/dev/null; echo "u $?"
trap 'echo T' USR2; kill -USR2 $$; trap; trap - USR2; trap
echo a;echo b&&echo c||echo d;(echo e);{ echo f;}
cat <<-E
	t1
	  t2 $((1+1))
	E
umask 022; echo $(umask); nosuch_command 2>/dev/null || echo "nf $?"
readonly R=5; echo $R; unset n; echo "${n?}" 2>/dev/null || true; echo end
