#!/bin/sh
# Plays router, shard and fetch for the process tests. It notes what happens to it in $STAGE/notes, and does what the test
# wrote into $STAGE/router.sh or $STAGE/shard.sh; without such a file, it does its duty.

part=$1
shift
rank='' port='' socket=''
for argument; do
    case $argument in
        --rank=*) rank=${argument#*=} ;;
        --port=*) port=${argument#*=} ;;
        --socket=*) socket=${argument#*=} ;;
    esac
done
name=$part${rank:+-$rank}

note() { echo "$name $*" >>"$STAGE/notes"; }

event() { printf '{"event":%s}\n' "$1"; }

# Waits for SIGTERM, and ends as a good child does.
stay() {
    trap 'note term; kill $sleeper; exit 0' TERM
    sleep 30 &
    sleeper=$!
    wait
}

# How often this child has been started, this time included.
incarnation() { grep -c "^$name start " "$STAGE/notes"; }

load() {
    : >"$socket"
    event '"phase","phase":"load","done":1,"total":272,"unit":"tensors"'
    event '"phase","phase":"load","done":272,"total":272,"unit":"tensors"'
    event '"listening"'
    event '"phase","phase":"warm_up","done":0,"total":1'
    event '"phase","phase":"warm_up","done":1,"total":1'
    event '"phase","phase":"size_kv_cache","done":1,"total":1'
}

ready() {
    event '"ready","url":"http://127.0.0.1:'"$port"'","model":"tiny","dtype":"float32","device":"cpu","context":8192,"kv_tokens":91024,"prefix_cache":true'
}

note "start $$"
if [ -f "$STAGE/$part.sh" ]; then
    . "$STAGE/$part.sh"
elif [ "$part" = shard ]; then
    echo "loading" >&2
    load
    stay
else
    ready
    stay
fi
