# One session on Kaggle, rehearsed in a mount namespace (unshare -rm): everything is read-only but /kaggle/working, which
# begins empty, and scratch. Usage: kaggle_session.sh INPUT WORKING ROOT COMMAND...
set -e
input=$1 working=$2 root=$3
shift 3
mount -t tmpfs tmpfs "$root"
mkdir -p "$root/kaggle/input" "$root/kaggle/working" "$root/kaggle/temp"
mount --bind "$working" "$root/kaggle/working"
mount --bind "$input" "$root/kaggle/input"
mount -o remount,bind,ro "$root/kaggle/input"
for path in /*; do
  name=$(basename "$path")
  if [ -L "$path" ]; then
    cp -P "$path" "$root/$name"
  elif [ -d "$path" ] && [ "$name" != kaggle ]; then
    mkdir "$root/$name"
    mount --rbind "$path" "$root/$name"
    case $name in dev | proc | sys) ;; *) mount -o remount,bind,ro "$root/$name" ;; esac
  fi
done
exec chroot "$root" env -C /kaggle/working -u PYTHONPATH HOME=/kaggle/temp TMPDIR=/kaggle/temp \
  KAGGLE_KERNEL_RUN_TYPE=Batch BRATS_HEADLESS=1 "$@"
