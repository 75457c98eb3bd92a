# Expansion: splitting, quoting, patterns, defaults, arithmetic.
show() { printf '%s:' "$#"; for a; do printf '<%s>' "$a"; done; echo; }
show "$@"; show $@; show "$*"; show $*; show "x$@y"
set --; show "$@"; show "" ; show ""$@; show "$*"; show ${1+"$@"}
set -- 'a b' c; show ${1+"$@"}; show "${@}"; show pre"$@"post
x='a:b::c:'; IFS=:; show $x; show "$x"; set -- $x; echo $#; unset IFS
x='  a   b  '; show $x; show "$x"; show a$x"b"; show $x$x
IFS=': '; x='a : b'; show $x; x=':a'; show $x; x='a:  :b'; show $x; IFS='
'; x='l 1
l 2'; show $x; unset IFS
p=/usr/local/lib/x.tar.gz
echo ${p##*/} ${p#*/} ${p%/*} ${p%%.*} ${p%.*} ${p##*.} "${p#/usr}"
q='*'; r='a*b'; echo "${r#"$q"}" "${r#a$q}" "${r#a"$q"}" "${r%\*b}"
unset u; e=
echo "${u-def}" "${e-def}" "${e:-def}" "${u+set}" "${e+set}" "${e:+set}" "${u:=new}" $u
echo "${#p}" ${#u} $#
echo $((1+2*3)) $((0x1f)) $((017)) $((7/2)) $((-7%3)) $((1<<4|1)) $((3>2&&2>3)) $((5?6:7))
n=5; echo $((n+=2)) $n $(( (n+1)*2 )) $((!n)) $((~n))
printf '%s\n' "a\$b\`c\"d\\e\f" 'a\b' a\ b\*c
echo "$(echo "nested $(echo "deep 'q'")")" `echo \`echo quoted\``
touch f1 f2 .hid 'sp ace'; mkdir d; touch d/x
echo * ; echo f? ; echo [f]1 ; echo nomatch* ; echo "f*" ; echo d/* ; echo */ ; echo .h* ; v='f*'; echo $v "$v"
set -f; echo f*; set +f
echo ~ | grep -c / ; echo "~" '~' \~
case abc in a*c) echo m1;; esac; case 'a*c' in 'a*'c) echo m2;; esac; case x in [!a-w]) echo m3;; esac; case é in ?) echo m4;; *) echo m4;; esac
case ab in b|ab) echo m5;; esac; case "" in "") echo m6;; esac; case 5 in [[:digit:]]) echo m7;; esac
echo ${u:-a b} "${u:-"a  b"}"; set -- ${unset1:-a b}; echo $#
a=1 b=$a; echo $b; a=2 eval 'echo $a'; echo $a
echo "$(printf 'x\n\n\n')y"
cat <<X
p=$p $((1+1)) $(echo sub) \$p "q" 'q' \\ `echo b`
X
cat <<'X'
p=$p \$p
X
cat <<-X
	tab gone
		$(echo two)
	X
