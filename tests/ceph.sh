#!/bin/sh
# An S3 server that is no toy: `ceph.sh FOLDER PORT KEY` makes a Ceph of one monitor and one store in a folder, where there is none yet, and
# becomes its gateway, on 127.0.0.1. What is to be ended once the gateway is killed has left its number in FOLDER/*.pid.
# Needs root and Debian's packages radosgw, ceph-mon and ceph-osd.
set -eu
folder=$1 port=$2 key=$3
export CEPH_CONF=$folder/ceph.conf

free_port() { python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'; }

if [ ! -e "$CEPH_CONF" ]; then
    monitor=$(free_port) fsid=$(cat /proc/sys/kernel/random/uuid) store=$(cat /proc/sys/kernel/random/uuid)
    cat > "$CEPH_CONF" <<END
[global]
fsid = $fsid
mon_host = [v2:127.0.0.1:$monitor]
public_addr = 127.0.0.1
keyring = $folder/keyring
run_dir = $folder
admin_socket = $folder/\$name.asok
pid_file = $folder/\$name.pid
log_file = $folder/\$name.log
crash_dir = $folder
mon_data = $folder/monitor
osd_data = $folder/store
osd_objectstore = memstore
memstore_device_bytes = 2147483648
osd_crush_chooseleaf_type = 0
osd_pool_default_size = 1
osd_pool_default_min_size = 1
osd_pool_default_pg_num = 1
osd_pool_default_pgp_num = 1
mon_allow_pool_size_one = true
mon_max_pg_per_osd = 1000
rgw_data = $folder/gateway
END
    exec > "$folder/setup.log" 2>&1
    mkdir -p "$folder/monitor" "$folder/store" "$folder/gateway"
    ceph-authtool --create-keyring "$folder/keyring" --gen-key -n client.admin --cap mon 'allow *' --cap osd 'allow *'
    ceph-authtool "$folder/keyring" --gen-key -n mon. --cap mon 'allow *'
    monmaptool --create --clobber --fsid "$fsid" --addv a "[v2:127.0.0.1:$monitor]" "$folder/monmap"
    ceph-mon --mkfs -i a --monmap "$folder/monmap" --keyring "$folder/keyring"
    ceph-mon -i a
    ceph-authtool "$folder/store.keyring" --create-keyring --gen-key -n osd.0
    secret=$(ceph-authtool -p -n osd.0 "$folder/store.keyring")
    echo "{\"cephx_secret\": \"$secret\"}" | ceph osd new "$store" -i -
    ceph-authtool "$folder/keyring" --add-key "$secret" -n osd.0
    ceph-osd -i 0 --mkfs --osd-uuid "$store"
    ceph-osd -i 0
    radosgw-admin -n client.admin user create --uid tests --display-name tests --access-key "$key" --secret-key "$key"
fi
exec radosgw -f -n client.admin --rgw-frontends "beast endpoint=127.0.0.1:$port"
