# The functions with which an init script describes its instances and triggers,
# named as procd's. They write the message for the bus down as records (see
# service-call), and procd_close_service sends it.
#
# A start_service looks like this:
#
#	procd_open_instance
#	procd_set_param command /usr/sbin/daemon -f
#	procd_set_param respawn
#	procd_close_instance

_PROCD_CALL=/usr/libexec/weft/service-call
_PROCD_TAB="	"
_PROCD_NL="
"
_procd_records=
_procd_trigger_open=
_procd_instances=0
_PROCD_SERVICE=
_PROCD_SCRIPT=

# --- the message -------------------------------------------------------------

# _procd_escape TEXT puts it into _procd_escaped.
_procd_escape() {
	_procd_escaped=$1
	case "$1" in
	*[\\"$_PROCD_TAB$_PROCD_NL"]*)
		_procd_escaped=${_procd_escaped//\\/\\\\}
		_procd_escaped=${_procd_escaped//"$_PROCD_TAB"/\\t}
		_procd_escaped=${_procd_escaped//"$_PROCD_NL"/\\n}
		;;
	esac
}

# _procd_record KIND [NAME [VALUE]]
_procd_record() {
	local line=$1
	_procd_escape "$2"
	line="$line$_PROCD_TAB$_procd_escaped"
	_procd_escape "$3"
	_procd_records="$_procd_records$line$_PROCD_TAB$_procd_escaped$_PROCD_NL"
}

# jshn's names, so that scripts which add to the message themselves work.
json_init() { _procd_records=; }
json_add_object() { _procd_record O "$1"; }
json_close_object() { _procd_record o; }
json_add_array() { _procd_record A "$1"; }
json_close_array() { _procd_record a; }
json_add_string() { _procd_record S "$1" "$2"; }
json_add_int() { _procd_record I "$1" "$2"; }
json_add_boolean() { _procd_record B "$1" "$2"; }
json_add_double() { _procd_record D "$1" "$2"; }
json_add_null() { _procd_record N "$1"; }
json_dump() { printf '%s' "$_procd_records" | "$_PROCD_CALL" -p; }

_procd_send() {
	[ -n "$IPKG_INSTROOT" ] && return 0
	printf '%s' "$_procd_records" | "$_PROCD_CALL" "$1"
}

# _procd_add_array NAME VALUE..., _procd_add_table NAME KEY=VALUE...
_procd_add_array() {
	local value
	_procd_record A "$1"
	shift
	for value in "$@"; do
		_procd_record S "" "$value"
	done
	_procd_record a
}

_procd_add_table() {
	local pair
	_procd_record O "$1"
	shift
	for pair in "$@"; do
		_procd_record S "${pair%%=*}" "${pair#*=}"
	done
	_procd_record o
}

# --- locking -----------------------------------------------------------------

# procd_lock keeps two runs of one script from mixing; the lock ends with the
# script.
procd_lock() {
	local base="${initscript##*/}"
	[ -n "$IPKG_INSTROOT" ] && return 0
	command -v flock >/dev/null 2>&1 || return 0
	mkdir -p /var/lock
	exec 1000>"/var/lock/procd_$base.lock"
	flock 1000
}

# --- services and instances --------------------------------------------------

procd_open_service() {
	_PROCD_SERVICE="$1"
	_PROCD_SCRIPT="$2"
	_procd_instances=0
	procd_lock
	json_init
	json_add_string name "$1"
	[ -n "$2" ] && json_add_string script "$2"
	json_add_object instances
}

# procd_close_service [set|add] adds triggers and data and sends the message.
procd_close_service() {
	json_close_object
	_procd_open_trigger
	type service_triggers >/dev/null 2>&1 && service_triggers
	_procd_close_trigger
	if type service_data >/dev/null 2>&1; then
		json_add_object data
		service_data
		json_close_object
	fi
	_procd_send "${1:-set}"
}

procd_open_instance() {
	_procd_instances=$((_procd_instances + 1))
	json_add_object "${1:-instance$_procd_instances}"
}

procd_close_instance() {
	json_close_object
}

# procd_add_instance COMMAND... is one instance in one call.
procd_add_instance() {
	procd_open_instance
	procd_set_param command "$@"
	procd_close_instance
}

# procd_set_param NAME VALUE...
procd_set_param() {
	local name="$1"
	shift
	case "$name" in
	env | data | limits)
		_procd_add_table "$name" "$@"
		;;
	command | netdev | file | error | watch | watchdog)
		_procd_add_array "$name" "$@"
		;;
	respawn)
		# Without numbers the supervisor takes its defaults, or those in UCI.
		_procd_add_array respawn "$@"
		;;
	nice | term_timeout)
		json_add_int "$name" "$1"
		;;
	reload_signal)
		json_add_int "$name" "$(_procd_signal "$1")"
		;;
	pidfile | user | group | seccomp | capabilities | facility | extroot | overlaydir | tmpoverlaysize)
		json_add_string "$name" "$1"
		;;
	stdout | stderr | no_new_privs)
		json_add_boolean "$name" "$1"
		;;
	*)
		echo "procd_set_param: unknown parameter $name" >&2
		return 1
		;;
	esac
}

# procd_append_param NAME VALUE... goes on where a list ended: the record that
# closed it is the last but for what came since.
procd_append_param() {
	local name="$1" kind close open rest list tail value
	shift
	case "$name" in
	env | data | limits) kind=O close="o$_PROCD_TAB$_PROCD_TAB$_PROCD_NL" ;;
	command | netdev | file | error | watch | watchdog | respawn) kind=A close="a$_PROCD_TAB$_PROCD_TAB$_PROCD_NL" ;;
	*)
		procd_set_param "$name" "$@"
		return
		;;
	esac
	open="$kind$_PROCD_TAB$name$_PROCD_TAB$_PROCD_NL"
	# The last list of that name is the open instance's, or there is none in it.
	rest="${_procd_records##*"$open"}"
	if [ "$rest" = "$_procd_records" ]; then
		procd_set_param "$name" "$@"
		return
	fi
	list="${rest%%"$close"*}"
	tail="${rest#*"$close"}"
	case "$tail" in
	*"o$_PROCD_TAB$_PROCD_TAB${_PROCD_NL}O$_PROCD_TAB"*)
		# That instance is closed already: the list belongs to an earlier one.
		procd_set_param "$name" "$@"
		return
		;;
	esac
	_procd_records="${_procd_records%"$rest"}$list"
	for value in "$@"; do
		if [ "$kind" = O ]; then
			_procd_record S "${value%%=*}" "${value#*=}"
		else
			_procd_record S "" "$value"
		fi
	done
	_procd_records="$_procd_records$close$tail"
}

_procd_signal() {
	case "${1#SIG}" in
	HUP) echo 1 ;;
	INT) echo 2 ;;
	QUIT) echo 3 ;;
	USR1) echo 10 ;;
	USR2) echo 12 ;;
	TERM) echo 15 ;;
	WINCH) echo 28 ;;
	*) echo "$1" ;;
	esac
}

# procd_kill SERVICE [INSTANCE] stops and forgets.
procd_kill() {
	json_init
	[ -n "$1" ] && json_add_string name "$1"
	[ -n "$2" ] && json_add_string instance "$2"
	# Nothing to stop is no failure.
	_procd_send delete 2>/dev/null
	return 0
}

# procd_send_signal SERVICE [INSTANCE|*] [SIGNAL]
procd_send_signal() {
	json_init
	json_add_string name "$1"
	[ -n "$2" ] && [ "$2" != "*" ] && json_add_string instance "$2"
	[ -n "$3" ] && json_add_int signal "$(_procd_signal "$3")"
	_procd_send signal
}

# _procd_state SERVICE [INSTANCE] prints running, stopped, unknown or inactive.
_procd_state() {
	"$_PROCD_CALL" --state "$1" "${2:-*}"
}

procd_running() {
	[ "$(_procd_state "$1" "$2")" = running ]
}

procd_status() {
	local state
	state="$(_procd_state "$1" "$2")"
	case "$state" in
	running) echo running; return 0 ;;
	inactive) echo inactive; return 3 ;;
	unknown) echo "unknown instance $2"; return 4 ;;
	"active with no instances") echo "$state"; return 0 ;;
	*) echo "not running"; return 5 ;;
	esac
}

procd_info() {
	ubus call service list "{\"name\":\"$1\",\"verbose\":true}"
}

# --- data --------------------------------------------------------------------

procd_open_data() { json_add_object data; }
procd_close_data() { json_close_object; }

# procd_set_config_changed PACKAGE announces a change of a package.
procd_set_config_changed() {
	json_init
	json_add_string type config.change
	json_add_object data
	json_add_string package "$1"
	json_close_object
	_procd_send event
}

# --- triggers ----------------------------------------------------------------

_procd_open_trigger() {
	[ -n "$_procd_trigger_open" ] && return 0
	_procd_trigger_open=1
	json_add_array triggers
}

_procd_close_trigger() {
	[ -n "$_procd_trigger_open" ] || return 0
	_procd_trigger_open=
	json_close_array
}

procd_open_trigger() { _procd_open_trigger; }
procd_close_trigger() { return 0; }

# _procd_trigger EVENT NAME VALUE DELAY COMMAND...: when EVENT comes with NAME
# being VALUE, run COMMAND after DELAY ms. Without NAME whatever it carries.
_procd_trigger() {
	local event="$1" var="$2" value="$3" delay="$4"
	shift 4
	json_add_array ""
	json_add_string "" "$event"
	if [ -n "$var" ]; then
		json_add_array ""
		json_add_string "" if
		_procd_add_array "" eq "$var" "$value"
		_procd_add_array "" run_script "$@"
		json_close_array
	else
		_procd_add_array "" run_script "$@"
	fi
	json_add_int "" "$delay"
	json_close_array
}

PROCD_RELOAD_DELAY=${PROCD_RELOAD_DELAY:-1000}

procd_add_config_trigger() {
	local event="$1" package="$2"
	shift 2
	_procd_trigger "$event" package "$package" "$PROCD_RELOAD_DELAY" "$@"
}

procd_add_interface_trigger() {
	local event="$1" interface="$2"
	shift 2
	_procd_trigger "$event" interface "$interface" "$PROCD_RELOAD_DELAY" "$@"
}

procd_add_raw_trigger() {
	local event="$1" delay="$2"
	shift 2
	_procd_trigger "$event" "" "" "$delay" "$@"
}

procd_add_reload_trigger() {
	local package
	for package in "$@"; do
		procd_add_config_trigger config.change "$package" "$_PROCD_SCRIPT" reload
	done
}

procd_add_reload_interface_trigger() {
	local interface
	for interface in "$@"; do
		procd_add_interface_trigger "interface.*" "$interface" "$_PROCD_SCRIPT" reload
	done
}

procd_add_reload_data_trigger() {
	local name
	for name in "$@"; do
		_procd_trigger service.data.update name "$name" "$PROCD_RELOAD_DELAY" "$_PROCD_SCRIPT" reload
	done
}

procd_add_action_mount_trigger() {
	local action="$1" target
	shift
	for target in "$@"; do
		_procd_trigger mount.add target "$target" "$PROCD_RELOAD_DELAY" "$_PROCD_SCRIPT" "$action"
	done
}
procd_add_reload_mount_trigger() { procd_add_action_mount_trigger reload "$@"; }
procd_add_restart_mount_trigger() { procd_add_action_mount_trigger restart "$@"; }

# --- what is described but not done ------------------------------------------

# Jails: there is no ujail here, as on a LEDE without procd-ujail. An instance
# that must not run without one says so.
procd_add_jail() {
	json_add_object jail
	json_add_string name "$1"
	json_close_object
}
procd_add_jail_mount() { return 0; }
procd_add_jail_mount_rw() { return 0; }

# Rules for `service validate` are shown by ubus and not checked.
procd_open_validate() { json_add_array validate; }
procd_close_validate() { json_close_array; }
procd_add_validation() { return 0; }

# uci_validate_section PACKAGE TYPE SECTION "NAME:TYPE[:DEFAULT]"... sets each NAME
# from UCI, or to its default. Types are not checked, but booleans become 1 or 0.
uci_validate_section() {
	local _package="$1" _section="$3" _spec _name _rest _type _default
	shift 3
	for _spec in "$@"; do
		_name="${_spec%%:*}"
		_rest="${_spec#*:}"
		_default=
		# The default stands behind the last colon outside parentheses and quotes.
		_procd_split "$_rest"
		if [ "$_type" = bool ]; then
			config_get_bool "$_name" "$_section" "$_name" "$_default"
		else
			config_get "$_name" "$_section" "$_name" "$_default"
		fi
	done
	return 0
}

# _procd_split TYPE[:DEFAULT] sets _type and _default.
_procd_split() {
	case "$1" in
	*\)*) # a type with parentheses: or("a", "b:c"):default
		_type="${1%\)*})"
		_default="${1##*\)}"
		_default="${_default#:}"
		;;
	*:*)
		_type="${1%%:*}"
		_default="${1#*:}"
		;;
	*)
		_type="$1"
		_default=
		;;
	esac
}

# uci_load_validate PACKAGE TYPE SECTION FUNCTION SPEC...: validate, then call
# FUNCTION SECTION 0.
uci_load_validate() {
	local _package="$1" _type_="$2" _name_="$3" _function="$4" _option _result
	shift 4
	for _option in "$@"; do
		eval "local ${_option%%:*}"
	done
	uci_validate_section "$_package" "$_type_" "$_name_" "$@"
	_result=$?
	[ -z "$_function" ] || eval "$_function \"\$_name_\" \"\$_result\""
}
