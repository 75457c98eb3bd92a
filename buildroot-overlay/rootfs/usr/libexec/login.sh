#!/bin/sh
# What runs on a console after Enter: a root shell, or a login if
# system.@system[0].ttylogin is 1.

if [ "$(uci -q get 'system.@system[0].ttylogin')" = 1 ]; then
	[ -x /bin/login ] && exec /bin/login
	echo "ttylogin is on, but this image has no /bin/login: no shell is given."
	echo "Set system.@system[0].ttylogin to 0 over the network, or start in failsafe mode."
	sleep 5
	exit 1
fi
exec /bin/sh --login
