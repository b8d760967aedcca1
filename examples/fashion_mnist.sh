#!/usr/bin/env bash
# Fashion-MNIST from Debian's package: its four idx files, in a folder for --data.source. Needs apt-get and dpkg-deb.
set -euo pipefail

folder=$(mkdir -p "${1:?usage: fashion_mnist.sh FOLDER}" && cd "$1" && pwd)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
apt-get download dataset-fashion-mnist
dpkg-deb -x ./*.deb .
cp usr/share/datasets/fashion-mnist/*.gz usr/share/doc/dataset-fashion-mnist/copyright "$folder"
echo "$folder: $(ls "$folder")"
