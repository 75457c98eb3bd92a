# Shell functions that init scripts, hotplug scripts and uci-defaults stand on,
# with LEDE's names and meaning. Sourced, never run.
#
# A package is read by config_load. For each section CONFIG_SECTIONS holds its
# name, and CONFIG_<section>_<option> its values; config_get and its kin read
# those. While loading, the callbacks config_cb, option_cb and list_cb are called
# if a script has defined them.

N="
"
_C=0
NO_EXPORT=1
LOAD_STATE=1
LIST_SEP=" "
CONFIG_SECTION=
CONFIG_SECTIONS=
CONFIG_NUM_SECTIONS=0

# append VAR VALUE [SEPARATOR], prepend likewise.
append() {
	local var="$1" value="$2" sep="${3:- }"
	eval "export ${NO_EXPORT:+-n} -- \"$var=\${$var:+\${$var}\${value:+\$sep}}\$value\""
}

prepend() {
	local var="$1" value="$2" sep="${3:- }"
	eval "export ${NO_EXPORT:+-n} -- \"$var=\${value}\${$var:+\${sep}\${$var}}\""
}

# list_contains VAR WORD: is WORD one of the words in VAR?
list_contains() {
	local var="$1" word="$2" all
	eval "all=\" \${$var} \""
	case "$all" in
	*" $word "*) return 0 ;;
	esac
	return 1
}

# list_remove VAR WORD...
list_remove() {
	local var="$1" word kept item all
	shift
	eval "all=\${$var}"
	for item in $all; do
		for word in "$@"; do
			[ "$item" = "$word" ] && continue 2
		done
		kept="${kept:+$kept }$item"
	done
	eval "export ${NO_EXPORT:+-n} -- \"$var=\$kept\""
}

# reset_cb forgets the callbacks.
reset_cb() {
	config_cb() { return 0; }
	option_cb() { return 0; }
	list_cb() { return 0; }
}
reset_cb

# package, config, option and list are what a package's text calls.
package() { return 0; }

config() {
	local type="$1" name="$2"
	_C=$((_C + 1))
	CONFIG_NUM_SECTIONS=$_C
	name="${name:-cfg$CONFIG_NUM_SECTIONS}"
	append CONFIG_SECTIONS "$name"
	config_cb "$type" "$name"
	CONFIG_SECTION="$name"
	export ${NO_EXPORT:+-n} "CONFIG_${CONFIG_SECTION}_TYPE=$type"
}

option() {
	local var="$1"
	shift
	export ${NO_EXPORT:+-n} "CONFIG_${CONFIG_SECTION}_${var}=$*"
	option_cb "$var" "$*"
}

list() {
	local var="$1" len
	shift
	config_get len "$CONFIG_SECTION" "${var}_LENGTH" 0
	len=$((len + 1))
	config_set "$CONFIG_SECTION" "${var}_ITEM$len" "$*"
	config_set "$CONFIG_SECTION" "${var}_LENGTH" "$len"
	append "CONFIG_${CONFIG_SECTION}_${var}" "$*" "$LIST_SEP"
	list_cb "$var" "$*"
}

# _config_vars PREFIX prints the names of the variables that begin with it.
_config_vars() {
	local line
	set | while IFS= read -r line; do
		case "$line" in
		"$1"*=*)
			line="${line%%=*}"
			case "$line" in
			*[!A-Za-z0-9_]*) ;;
			*) echo "$line" ;;
			esac
			;;
		esac
	done
}

config_rename() {
	local old="$1" new="$2" kept item
	[ -n "$old" ] && [ -n "$new" ] || return
	for item in $(_config_vars "CONFIG_${old}_"); do
		eval "CONFIG_${new}_${item#CONFIG_${old}_}=\$$item"
		unset "$item"
	done
	for item in $CONFIG_SECTIONS; do
		[ "$item" = "$old" ] && item="$new"
		kept="${kept:+$kept }$item"
	done
	CONFIG_SECTIONS="$kept"
	[ "$CONFIG_SECTION" = "$old" ] && CONFIG_SECTION="$new"
	return 0
}

config_unset() { config_set "$1" "$2" ""; }

# config_clear [SECTION] forgets a section, or all.
config_clear() {
	local name="$1" kept item
	for item in $CONFIG_SECTIONS; do
		if [ -n "$name" ] && [ "$item" != "$name" ]; then
			kept="${kept:+$kept }$item"
			continue
		fi
		unset $(_config_vars "CONFIG_${item}_") CONFIG_UNUSED
	done
	CONFIG_SECTIONS="$kept"
	return 0
}

# config_get VAR SECTION OPTION [DEFAULT] sets VAR; config_get SECTION OPTION
# prints.
config_get() {
	case "$2${3:-$1}" in
	*[!A-Za-z0-9_]*)
		[ -z "$3" ] || eval "$1=\${4}"
		;;
	*)
		case "$3" in
		"") eval "echo \"\${CONFIG_${1}_${2}:-\${4}}\"" ;;
		*) eval "export ${NO_EXPORT:+-n} -- \"${1}=\${CONFIG_${2}_${3}:-\${4}}\"" ;;
		esac
		;;
	esac
}

# get_bool VALUE [DEFAULT] prints 1 or 0.
get_bool() {
	case "$1" in
	1 | on | true | yes | enabled) echo 1 ;;
	0 | off | false | no | disabled) echo 0 ;;
	*) echo "$2" ;;
	esac
}

# config_get_bool as config_get, for 1 or 0.
config_get_bool() {
	local _value
	config_get _value "$2" "$3" "$4"
	case "$_value" in
	1 | on | true | yes | enabled) _value=1 ;;
	0 | off | false | no | disabled) _value=0 ;;
	*) _value="$4" ;;
	esac
	export ${NO_EXPORT:+-n} "$1=$_value"
}

config_set() {
	export ${NO_EXPORT:+-n} "CONFIG_${1}_${2}=${3}"
}

# config_foreach FUNCTION [TYPE [ARGUMENT...]] calls it with each section's name.
config_foreach() {
	local _function="$1" _type section cfgtype
	[ "$#" -ge 1 ] && shift
	_type="$1"
	[ "$#" -ge 1 ] && shift
	[ -z "$CONFIG_SECTIONS" ] && return 0
	for section in $CONFIG_SECTIONS; do
		config_get cfgtype "$section" TYPE
		[ -n "$_type" ] && [ "$cfgtype" != "$_type" ] && continue
		eval "$_function \"\$section\" \"\$@\""
	done
}

# config_list_foreach SECTION OPTION FUNCTION [ARGUMENT...] calls it with each
# value; a plain option is one value for each word.
config_list_foreach() {
	[ "$#" -ge 3 ] || return 0
	local section="$1" option="$2" function="$3" i=1 len val
	shift 3
	config_get len "$section" "${option}_LENGTH"
	if [ -z "$len" ]; then
		config_get val "$section" "$option"
		for val in $val; do
			eval "$function \"\$val\" \"\$@\""
		done
		return 0
	fi
	while [ "$i" -le "$len" ]; do
		config_get val "$section" "${option}_ITEM$i"
		eval "$function \"\$val\" \"\$@\""
		i=$((i + 1))
	done
}

config_load() {
	[ -n "$IPKG_INSTROOT" ] && return 0
	uci_load "$@"
}

# include FOLDER sources its *.sh.
include() {
	local file
	for file in "$1"/*.sh; do
		[ -f "$file" ] && . "$file"
	done
	return 0
}

board_name() {
	[ -e /tmp/sysinfo/board_name ] && cat /tmp/sysinfo/board_name || echo generic
}

# cmdline_get_var NAME prints a kernel argument's value.
cmdline_get_var() {
	local var="$1" arg
	for arg in $(cat /proc/cmdline); do
		case "$arg" in
		"$var"=*) echo "${arg#*=}"; return 0 ;;
		esac
	done
	return 1
}

# service_name, user and group helpers of packages' scripts.
group_exists() { grep -qs "^$1:" "$IPKG_INSTROOT/etc/group"; }
user_exists() { grep -qs "^$1:" "$IPKG_INSTROOT/etc/passwd"; }

# free_id FILE prints the first number from 100 on that FILE does not use.
_free_id() {
	local id=100 used
	used=" $(cut -d: -f3 "$1" | tr '\n' ' ')"
	while case "$used" in *" $id "*) true ;; *) false ;; esac; do
		id=$((id + 1))
	done
	echo $id
}

group_add() {
	local name="$1" gid="$2"
	group_exists "$name" && return 1
	echo "$name:x:${gid:-$(_free_id "$IPKG_INSTROOT/etc/group")}:" >>"$IPKG_INSTROOT/etc/group"
}

group_add_next() {
	local name="$1" gid
	if ! group_exists "$name"; then
		group_add "$name"
	fi
	gid=$(grep -s "^$name:" "$IPKG_INSTROOT/etc/group" | cut -d: -f3)
	echo "$gid"
}

user_add() {
	local name="$1" uid="$2" gid="$3" desc="$4" home="${5:-/var/run/$1}" shell="${6:-/bin/false}"
	user_exists "$name" && return 1
	uid="${uid:-$(_free_id "$IPKG_INSTROOT/etc/passwd")}"
	echo "$name:x:$uid:${gid:-$uid}:${desc:-$name}:$home:$shell" >>"$IPKG_INSTROOT/etc/passwd"
	echo "$name:x:0:0:99999:7:::" >>"$IPKG_INSTROOT/etc/shadow"
}

[ -z "$IPKG_INSTROOT" ] && [ -f /lib/config/uci.sh ] && . /lib/config/uci.sh
true
