#!/bin/sh
# `ray up` and `ray down` of a cluster file against an emulated EC2 (moto), in a network namespace without a way out: run under `unshare -n`.
#   rayup.sh CLUSTER.yaml FOLDER MOTO_PYTHON RAY       FOLDER gets commands.log, up.log, down.log, ec2.json
set -u
cluster=$1 folder=$2 moto=$3 ray=$4
here=$(dirname "$(readlink -f "$0")")
ip link set lo up
export STANDIN_LOG=$folder/commands.log PATH="$here/standins:$PATH" HOME="$folder/home"
export AWS_ACCESS_KEY_ID=planted-key-id AWS_SECRET_ACCESS_KEY=planted-secret-key AWS_DEFAULT_REGION=us-west-2
export AWS_EC2_METADATA_DISABLED=true AWS_ENDPOINT_URL=http://127.0.0.1:5599 RAY_USAGE_STATS_ENABLED=0
mkdir -p "$HOME/.ssh" "$HOME/.ray/token"
printf planted-token > "$HOME/.ray/token/auth_token"
: > "$STANDIN_LOG"
"$moto" -m moto.server -H 127.0.0.1 -p 5599 > "$folder/moto.log" 2>&1 &
server=$!
"$moto" "$here/ec2.py" prepare || { kill $server; exit 9; }
"$ray" get-head-ip "$cluster" > "$folder/before.log" 2>&1; before=$?
"$ray" up -y --no-config-cache "$cluster" > "$folder/up.log" 2>&1; up=$?
"$ray" get-head-ip "$cluster" > "$folder/after.log" 2>&1; after=$?
"$moto" "$here/ec2.py" show > "$folder/ec2.json"
"$ray" down -y "$cluster" > "$folder/down.log" 2>&1; down=$?
"$moto" "$here/ec2.py" show > "$folder/ec2-after.json"
kill $server
echo "$before $up $after $down"
