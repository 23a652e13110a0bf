#!/usr/bin/env bash
# Builds the library and runs the C and C++ tests and the C example against it. What it makes lies in
# cargo's target folder. Needs gcc and g++; uses valgrind if there is one.
set -euo pipefail

crate=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
root=$(dirname "$crate")
model=$root/examples/models/emoji
goldens=$root/tests/goldens
golden=$goldens/runs/emoji_ddim.safetensors
other_family=$goldens/loras/kohya_a.safetensors
# A relative one counts from where cargo is called, which is here.
export CARGO_TARGET_DIR=$(realpath -m "${CARGO_TARGET_DIR:-$root/target}")
lib=$CARGO_TARGET_DIR/release
build=$CARGO_TARGET_DIR/c

cargo build --release -p diffusion-c --manifest-path "$root/Cargo.toml"

rm -rf "$build"
mkdir -p "$build/broken/empty" "$build/broken/damaged"
echo '{' >"$build/broken/damaged/model_index.json"
cp -r "$model" "$build/broken/unreadable"
rm "$build/broken/unreadable/unet/config.json"
mkdir "$build/broken/unreadable/unet/config.json"
cp -r "$model" "$build/broken/misfit"
sed -i 's/"layers_per_block": 1/"layers_per_block": 2/' "$build/broken/misfit/unet/config.json"

strict=(-Wall -Wextra -Wpedantic -Werror -g -O1 "-I$crate/include")
shared=("-L$lib" -ldiffusion "-Wl,-rpath,$lib" -pthread)
static=("$lib/libdiffusion.a" -pthread -ldl -lm)

for name in errors generate changes pictures networks; do
    gcc -std=c99 "${strict[@]}" -o "$build/test_$name" "$crate/tests/test_$name.c" "${shared[@]}"
done
gcc -std=c99 "${strict[@]}" -fsanitize=address,undefined -o "$build/test_generate_asan" \
    "$crate/tests/test_generate.c" "${shared[@]}"
g++ -std=c++11 "${strict[@]}" -o "$build/test_cpp" "$crate/tests/test_cpp.cpp" "${static[@]}"

"$build/test_errors" "$model" "$build/broken" "$other_family"
"$build/test_generate" "$model" "$golden"
"$build/test_changes" "$goldens"
"$build/test_pictures" "$goldens"
"$build/test_networks" "$goldens" "$build"
"$build/test_cpp" "$model"

# Runs of the emoji model take minutes under valgrind, so they go through the address sanitizer, which sees the test's own
# memory; everything else goes through valgrind, which sees the library's too.
"$build/test_generate_asan" "$model" "$golden"
if command -v valgrind >/dev/null; then
    checked=(valgrind --quiet --error-exitcode=1 --leak-check=full
        --show-leak-kinds=definite --errors-for-leak-kinds=definite)
    "${checked[@]}" "$build/test_errors" "$model" "$build/broken" "$other_family"
    # valgrind runs one thread at a time, so that workers would only wait.
    RAYON_NUM_THREADS=1 "${checked[@]}" "$build/test_changes" "$goldens" brief
    RAYON_NUM_THREADS=1 "${checked[@]}" "$build/test_pictures" "$goldens"
    RAYON_NUM_THREADS=1 "${checked[@]}" "$build/test_networks" "$goldens" "$build"
else
    echo "valgrind: not here, left out"
fi

make --silent -C "$root/examples/c" CFLAGS="-O2 -Wall -Wextra -Wpedantic -Werror"
"$build/txt2img" "$model" "a red heart, flat style" "$build/heart.ppm" 1
[[ $(head -n 2 "$build/heart.ppm" | tr '\n' ' ') == "P6 128 128 " ]]
[[ $(stat -c %s "$build/heart.ppm") == $((15 + 128 * 128 * 3)) ]]
echo "example: ok"
