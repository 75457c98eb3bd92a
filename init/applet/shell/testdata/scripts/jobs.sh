#exit 0
# Background work: $!, wait, kill, traps.
sleep 0.05 & p=$!; wait $p; echo "w $?"
(exit 3) & wait $!; echo "w $?"
{ echo bg; exit 4; } >bgout & wait $!; echo "w $? $(cat bgout)"
fn() { echo "fn $1 $v"; return 6; }; v=var; fn arg >fo & wait $!; echo "w $? $(cat fo)"
sleep 60 & p=$!; kill $p; wait $p; echo "w $?"; kill -0 $p 2>/dev/null || echo gone
sleep 60 & p=$!; kill -9 $p; wait $p; echo "w $?"
trap 'echo got USR1' USR1; kill -USR1 $$; echo after; trap - USR1
trap 'echo term; exit 0' TERM
(sleep 0.1; kill -TERM $$) &
i=0; while [ $i -lt 100 ]; do sleep 0.05; i=$((i+1)); done; echo no
