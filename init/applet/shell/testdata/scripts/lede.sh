#oracle busybox
# The ways of LEDE's function library, written anew: callbacks, prefix variables.
N='
'
CONFIG_SECTION= ; CONFIG_NUM_SECTIONS=0; CONFIG_SECTIONS=; NO_EXPORT=1
append() { local var="$1" value="$2" sep="${3:- }"; eval "export ${NO_EXPORT:+-n} -- \"$var=\${$var:+\${$var}\${value:+\$sep}}\$value\"" 2>/dev/null || eval "$var=\"\${$var:+\${$var}\${value:+\$sep}}\$value\""; }
config() { local type="$1" name="$2"; CONFIG_NUM_SECTIONS=$((CONFIG_NUM_SECTIONS + 1)); name="${name:-cfg$CONFIG_NUM_SECTIONS}"; append CONFIG_SECTIONS "$name"; CONFIG_SECTION="$name"; eval "CONFIG_${name}_TYPE=\"\$type\""; }
option() { local varname="$1"; shift; local value="$*"; eval "CONFIG_${CONFIG_SECTION}_${varname}=\"\$value\""; }
list() { local varname="$1" value="$2" len; eval "len=\"\${CONFIG_${CONFIG_SECTION}_${varname}_LENGTH:-0}\""; len=$((len + 1)); option "${varname}_ITEM$len" "$value"; eval "CONFIG_${CONFIG_SECTION}_${varname}_LENGTH=$len"; append "CONFIG_${CONFIG_SECTION}_${varname}" "$value" " "; }
config_get() { case "$2${3:-$1}" in *[!A-Za-z0-9_]*) : ;; *) case "$3" in "") eval echo "\"\${CONFIG_${1}_${2}:-\${4}}\"";; *) eval "$1=\${CONFIG_${2}_${3}:-\"\$4\"}";; esac;; esac; }
get_bool() { local _tmp="$1"; case "$_tmp" in 1|on|true|yes|enabled) _tmp=1;; 0|off|false|no|disabled) _tmp=0;; *) _tmp="$2";; esac; echo -n "$_tmp"; }
config_get_bool() { local _tmp; config_get _tmp "$2" "$3" "$4"; _tmp="$(get_bool "$_tmp" "$4")"; eval "$1=\$_tmp"; }
config_foreach() { local ___function="$1"; [ "$#" -ge 1 ] && shift; local ___type="$1"; [ "$#" -ge 1 ] && shift; local section cfgtype; [ -z "$CONFIG_SECTIONS" ] && return 0; for section in ${CONFIG_SECTIONS}; do config_get cfgtype "$section" TYPE; [ -n "$___type" ] && [ "x$cfgtype" != "x$___type" ] && continue; eval "$___function \"\$section\" \"\$@\""; done; }
config_list_foreach() { [ "$#" -ge 3 ] || return 0; local section="$1" option="$2" function="$3"; shift 3; local val len c=1; config_get len "$section" "${option}_LENGTH"; [ -z "$len" ] && return 0; while [ $c -le "$len" ]; do config_get val "$section" "${option}_ITEM$c"; eval "$function \"\$val\" \"\$@\""; c=$((c + 1)); done; }
while read -r line; do eval "$line"; done <<'CFG'
config interface 'loopback'
option device 'lo'
option proto 'static'
list ipaddr '127.0.0.1/8'
config interface 'lan'
option device 'br-lan'
option enabled 'yes'
list dns '1.1.1.1'
list dns "8.8.8.8"
config device
option name "it's $odd"
CFG
cb() { local dev en; config_get dev "$1" device none; config_get_bool en "$1" enabled 0; echo "$1 $dev $en ($2)"; }
config_foreach cb interface extra
config_foreach cb
dnscb() { echo "dns $1 $2"; }
config_list_foreach lan dns dnscb tag
config_get x cfg3 name; echo "$x"
set | grep -c '^CONFIG_'
list_contains() { local var="$1" str="$2" val; eval "val=\" \${$var} \""; [ "${val%% $str *}" != "$val" ]; }
L="a b c"; list_contains L b && echo has; list_contains L x || echo hasnot
sanitize() { echo "${1}" | sed -e 's/[^a-z]/_/g'; }; sanitize a-b.c
boot_hook() { local hook="${1}_hook"; eval "$hook=\"\${$hook}\${$hook:+\$N}\$2\""; }; boot_hook pre one; boot_hook pre two; echo "$pre_hook"
[ -n "${IPKG_INSTROOT}" ] || echo noroot
for file in $(printf '%s\n' S20b S10a S30c | sort); do echo -n "$file "; done; echo
var=a,b,c; oIFS="$IFS"; IFS=","; set -- $var; IFS="$oIFS"; echo "$3 $2 $1"
json='{"x":1}'; case "$json" in *'"x":'*) v="${json##*'"x":'}"; v="${v%%[!0-9]*}"; echo "x=$v";; esac
mac=00:11:22:aa:bb:cc; echo "${mac%%:*}" $(printf '%02x' $(( (0x${mac##*:} + 1) & 255 )))
ip=192.168.1.10/24; echo "${ip%/*} ${ip#*/}"; [ "${ip#*/}" -ge 24 ] && echo mask
