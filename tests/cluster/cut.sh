#!/bin/sh
# Three Ray nodes, each in a network namespace of its own on one bridge; the program on stdin is the driver; after 4 s the cable of one is pulled.
#   cut.sh FOLDER BIN KEEPALIVE(1/0) SECONDS
folder=$1 bin=$2 keep=$3 seconds=$4
tag=c$$
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH=$folder/token RAY_USAGE_STATS_ENABLED=0 PATH=$bin:$PATH
unset RAY_ADDRESS
export RAY_health_check_initial_delay_ms=1000 RAY_health_check_period_ms=1000 RAY_health_check_timeout_ms=1000 RAY_health_check_failure_threshold=3
[ "$keep" = 1 ] && export RAY_grpc_client_keepalive_time_ms=10000 RAY_grpc_client_keepalive_timeout_ms=10000
head -c 16 /dev/urandom | od -An -tx1 | tr -d ' \n' > "$folder/token"
cat > "$folder/driver.py"
clean() {
  for name in h a b; do
    for pid in $(ip netns pids $tag$name 2>/dev/null); do kill -9 "$pid" 2>/dev/null; done
    ip netns del $tag$name 2>/dev/null
  done
  ip link del ${tag}br 2>/dev/null
  rm -rf /tmp/$tag
}
trap clean EXIT
ip link add ${tag}br type bridge 2>/dev/null && ip link set ${tag}br up || { echo "no namespaces" >&2; exit 9; }
n=1
for name in h a b; do
  ip netns add $tag$name || { echo "no namespaces" >&2; exit 9; }
  ip link add $tag$name type veth peer name eth0 netns $tag$name
  ip link set $tag$name master ${tag}br up
  ip -n $tag$name addr add 10.219.7.$n/24 dev eth0
  ip -n $tag$name link set eth0 up
  ip -n $tag$name link set lo up
  n=$((n + 1))
done
in_ns() { name=$1; shift; ip netns exec $tag$name "$@"; }
start() {   # name, options: tried again, since a start on a busy machine may time out
  name=$1; shift
  for try in 1 2 3; do
    timeout 120 ip netns exec $tag$name ray start --temp-dir /tmp/$tag/$name "$@" > "$folder/$name.log" 2>&1 && return 0
  done
  cat "$folder/$name.log" >&2; exit 8
}
start h --head --port 6379 --node-ip-address 10.219.7.1 --num-cpus 0 --include-dashboard false
start a --address 10.219.7.1:6379 --node-ip-address 10.219.7.2 --num-cpus 1
start b --address 10.219.7.1:6379 --node-ip-address 10.219.7.3 --num-cpus 1
in_ns h env RAY_ADDRESS=10.219.7.1:6379 timeout "$seconds" python "$folder/driver.py" > "$folder/out.log" 2> "$folder/err.log" &
driver=$!
until grep -q working "$folder/out.log" || ! kill -0 $driver 2>/dev/null; do sleep 0.2; done
sleep 6
ip link set ${tag}a down
wait $driver
cat "$folder/out.log"; tail -5 "$folder/err.log" >&2
