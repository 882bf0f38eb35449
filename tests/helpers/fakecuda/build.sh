#!/bin/sh
# build.sh DIR: the fake CUDA driver and the fake TensorRT 10 libraries into DIR, import stubs for TensorRT 11 beside
# them.  Needs gcc and nothing else.
set -e
here=$(cd "$(dirname "$0")" && pwd)
mkdir -p "$1" && cd "$1"
gcc -O2 -g -fPIC -shared -Wl,-soname,libcuda.so.1 -o libcuda.so.1 "$here/fakecuda.c" -ldl -lpthread
ln -sf libcuda.so.1 libcuda.so
# One shared object under three names: the loader maps it once, so the three share their objects.
gcc -O2 -g -fPIC -shared -Wl,-soname,libnvinfer.so.10 -o libnvinfer.so.10 "$here/trtfake.c" -ldl
ln -sf libnvinfer.so.10 libnvonnxparser.so.10
ln -sf libnvinfer.so.10 libnvinfer_plugin.so.10
for name in libnvinfer libnvonnxparser libnvinfer_plugin; do
    gcc -O2 -fPIC -shared -Wl,-soname,$name.so.11 -o $name.so.11 "$here/trtstub.c"
done
