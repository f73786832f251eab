# shellcheck shell=sh disable=SC2034
# Shared by the room's scripts: paths, the range of user ids, and how to create an account.
SETTINGS=/etc/workshop-room
STATE=/var/lib/workshop-room
RUN=/run/workshop-room # in memory: a full disk must not stop a log-in
FIRST_UID=20000 LAST_UID=20999
PATH=/opt/workshop/.venv/bin:$PATH:/usr/sbin:/sbin

setting() { python3 -Ic 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$SETTINGS/room.json" "$1"; }

# No sub-ids: with them, a person could run programs under user ids that the firewall does not know.
make_account() {
  useradd --create-home --shell /bin/bash --groups workshop-room --key HOME_MODE=0700 --key UID_MIN=$FIRST_UID \
    --key UID_MAX=$LAST_UID --key SUB_UID_COUNT=0 --key SUB_GID_COUNT=0 "$1"
}

# One inode per 16 KiB, as in ext4.
limit_disk() {
  size=$(setting disk) place=$(findmnt -no TARGET -T /home)
  if quotaon -pu "$place" 2>/dev/null | grep -q "is on"; then # without --disk, this removes an earlier quota
    size=$(($(numfmt --from=iec "${size:-0}") / 1024))
    setquota -u "$1" 0 "$size" 0 $((size / 16)) "$place"
  fi
}
