"use strict";
// Standard normal numbers that depend on (seed, picture) only. They are not those of `tvmatch sample` with that seed.

/** Uniform whole numbers below 2^32: sfc32 (C. Doty-Humphrey), started by a 32-bit mix of the seed and the picture. */
function uniformSource(seed, picture) {
  let mixed = seed >>> 0;
  const mix = (word) => { // MurmurHash3's last step
    mixed = Math.imul(mixed ^ word ^ 0x9e3779b9, 0x85ebca6b);
    mixed = Math.imul(mixed ^ (mixed >>> 13), 0xc2b2ae35);
    return (mixed ^= mixed >>> 16);
  };
  let [a, b, c, d] = [mix(picture), mix(1), mix(2), 1];
  const next = () => {
    const sum = (((a + b) | 0) + d) | 0;
    d = (d + 1) | 0;
    a = b ^ (b >>> 9);
    b = (c + (c << 3)) | 0;
    c = (((c << 21) | (c >>> 11)) + sum) | 0;
    return sum >>> 0;
  };
  for (let i = 0; i < 15; i++) next();
  return next;
}

/** Float32Array of `size` standard normal numbers, by Box and Muller. */
function normalNoise(seed, picture, size) {
  const next = uniformSource(seed, picture);
  const noise = new Float32Array(size);
  for (let i = 0; i < size; i += 2) {
    const radius = Math.sqrt(-2 * Math.log((next() + 1) / 4294967296)); // never the logarithm of zero
    const angle = (2 * Math.PI * next()) / 4294967296;
    noise[i] = radius * Math.cos(angle);
    if (i + 1 < size) noise[i + 1] = radius * Math.sin(angle);
  }
  return noise;
}
