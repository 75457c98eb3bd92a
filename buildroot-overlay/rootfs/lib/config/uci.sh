# uci in shell scripts, with LEDE's function names. Sourced by /lib/functions.sh.

CONFIG_APPEND=

# uci_load PACKAGE reads a package into the CONFIG_ variables.
uci_load() {
	local package="$1" text ret
	# A second package is added to the first only inside an unfinished load.
	if [ -z "$CONFIG_APPEND" ]; then
		config_clear
		_C=0
		CONFIG_NUM_SECTIONS=0
		CONFIG_SECTION=
	fi
	text="$(uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} ${LOAD_STATE:+-P /var/state} -S -n export "$package" 2>/dev/null)"
	ret=$?
	[ "$ret" != 0 ] || [ -z "$text" ] || {
		eval "$text"
		# The last section ends like the others.
		[ -z "$CONFIG_SECTION" ] || config_cb
	}
	return "$ret"
}

uci_set_default() {
	local package="$1"
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} -q show "$package" >/dev/null && return 0
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} import "$package"
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} commit "$package"
}

# State lives in /var/state, a delta folder that is never committed.
uci_set_state() {
	local package="$1" config="$2" option="$3" value="$4"
	[ "$#" = 4 ] || return 0
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} -P /var/state set "$package.$config${option:+.$option}=$value"
}

uci_toggle_state() {
	uci_revert_state "$1" "$2" "$3"
	uci_set_state "$1" "$2" "$3" "$4"
}

uci_revert_state() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} -P /var/state revert "$1${2:+.$2}${3:+.$3}"
}

uci_get_state() {
	uci_get "$1" "$2" "$3" "$4" /var/state
}

# uci_get PACKAGE SECTION [OPTION [DEFAULT [STATE]]]
uci_get() {
	local package="$1" config="$2" option="$3" default="$4" state="$5"
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} ${state:+-P "$state"} -q get "$package${config:+.$config}${option:+.$option}"
	local ret=$?
	[ "$ret" -ne 0 ] && [ -n "$default" ] && echo "$default"
	return $ret
}

uci_set() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} set "$1.$2.$3=$4"
}

uci_add() {
	local package="$1" type="$2" config="$3"
	if [ -z "$config" ]; then
		export ${NO_EXPORT:+-n} CONFIG_SECTION="$(uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} add "$package" "$type")"
	else
		uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} set "$package.$config=$type"
		export ${NO_EXPORT:+-n} CONFIG_SECTION="$config"
	fi
}

uci_add_list() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} add_list "$1.$2.$3=$4"
}

uci_rename() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} rename "$1.$2${4:+.$3}=${4:-$3}"
}

uci_remove() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} del "$1.$2${3:+.$3}"
}

uci_remove_list() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} del_list "$1.$2.$3=$4"
}

uci_revert() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} revert "$1${2:+.$2}${3:+.$3}"
}

uci_commit() {
	uci ${UCI_CONFIG_DIR:+-c "$UCI_CONFIG_DIR"} commit "$1"
}
