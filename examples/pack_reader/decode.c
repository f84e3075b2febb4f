/* Decodes with the logits of a pack and compares every step with what was recorded.

   cc -O2 -o decode decode.c -lm && ./decode PACK/decoding.safetensors

   For each run of the pack (generation and editing, in both layouts of JAX's random streams) and each step,
   from the recorded state and logits: split the key, draw Gumbel noise, sample, choose what to mask again.
   Sampled tokens, mask counts and the next state must be equal. Little-endian machines. */

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static char *header, *data; /* of the safetensors file: 8 bytes of length, JSON, data */

static void fail(const char *what, const char *name) {
  fprintf(stderr, "decode: %s: %s\n", what, name);
  exit(2);
}

static void open_file(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) fail("cannot be opened", path);
  fseek(file, 0, SEEK_END);
  long size = ftell(file);
  rewind(file);
  char *bytes = malloc(size + 1);
  if (size < 8 || fread(bytes, 1, size, file) != (size_t)size) fail("cannot be read", path);
  fclose(file);
  uint64_t length;
  memcpy(&length, bytes, 8);
  if (length > (uint64_t)size - 8) fail("is no safetensors file", path);
  header = malloc(length + 1);
  memcpy(header, bytes + 8, length);
  header[length] = 0;
  data = bytes + 8 + length;
}

/* Finds "NAME":{"dtype":...,"shape":[...],"data_offsets":[begin,end]} and returns where its data begin. */
static void *find(const char *run, const char *name, int axes, long *shape) {
  char key[256];
  snprintf(key, sizeof key, "\"decoding.%s.%s\":", run, name);
  char *at = strstr(header, key);
  if (!at) return NULL;
  char *list = strstr(at, "\"shape\":["), *offsets = strstr(at, "\"data_offsets\":[");
  if (!list || !offsets) fail("has no shape", key);
  list += 9;
  for (int i = 0; i < axes; i++, list++) shape[i] = strtol(list, &list, 10);
  return data + strtol(offsets + 16, NULL, 10);
}

/* Threefry-2x32: two words of a key and two of a counter give two random words. */
static uint32_t rotate(uint32_t x, int r) { return x << r | x >> (32 - r); }

static void threefry(const uint32_t key[2], uint32_t x0, uint32_t x1, uint32_t out[2]) {
  static const int rotations[2][4] = {{13, 15, 26, 6}, {17, 29, 16, 24}};
  const uint32_t schedule[3] = {key[0], key[1], key[0] ^ key[1] ^ 0x1BD11BDA};
  x0 += schedule[0];
  x1 += schedule[1];
  for (int group = 0; group < 5; group++) {
    for (int i = 0; i < 4; i++) {
      x0 += x1;
      x1 = rotate(x1, rotations[group % 2][i]) ^ x0;
    }
    x0 += schedule[(group + 1) % 3];
    x1 += schedule[(group + 2) % 3] + group + 1;
  }
  out[0] = x0;
  out[1] = x1;
}

/* Bits of draw i of n. Original layout: counters 0 ... n-1, padded by a zero, cut into two halves that are
   the two words; all first outputs come before all second ones. Partitionable: the two words of i, xor-ed. */
static uint32_t draw(const uint32_t key[2], long i, long n, int partitionable) {
  uint32_t out[2];
  if (partitionable) {
    threefry(key, (uint32_t)((uint64_t)i >> 32), (uint32_t)i, out);
    return out[0] ^ out[1];
  }
  long half = (n + 1) / 2, first = i < half ? i : i - half;
  threefry(key, first, half + first < n ? half + first : 0, out);
  return i < half ? out[0] : out[1];
}

static void split(const uint32_t key[2], int partitionable, uint32_t next[2], uint32_t use[2]) {
  uint32_t words[4]; /* next may be key itself */
  for (int i = 0; i < 4; i++) words[i] = draw(key, i, 4, 0);
  if (partitionable) {
    threefry(key, 0, 0, words);
    threefry(key, 0, 1, words + 2);
  }
  memcpy(next, words, 8);
  memcpy(use, words + 2, 8);
}

static float gumbel(uint32_t bits) {
  uint32_t mantissa = bits >> 9 | 0x3F800000;
  float u;
  memcpy(&u, &mantissa, 4);
  u -= 1.0f;
  return -logf(-logf(u < 1.17549435e-38f ? 1.17549435e-38f : u));
}

static int compare_floats(const void *a, const void *b) {
  float x = *(const float *)a, y = *(const float *)b;
  return (x > y) - (x < y);
}

static int wrong(const char *run, int step, const char *what, long b, long n, long got, long want) {
  printf("FAIL %s, step %d: %s at sample %ld, position %ld: %ld, recorded %ld\n", run, step, what, b, n, got,
         want);
  return 1;
}

static int check_run(const char *run, int partitionable, int start, int steps_of_schedule) {
  long shape[4], steps, B, N, K, two[3];
  const float *logits = find(run, "logits", 4, shape), temperature = 4.5f;
  const int32_t *state = find(run, "state", 3, two), *sampled = find(run, "sampled", 3, two);
  const int32_t *counts = find(run, "mask_count", 2, two), *next = find(run, "next", 3, two);
  const uint32_t *key = find(run, "key", 2, two);
  if (!logits || !state || !sampled || !counts || !next || !key) fail("is not in the file", run);
  steps = shape[0], B = shape[1], N = shape[2], K = shape[3];
  float *scores = malloc(N * sizeof *scores), *sorted = malloc(N * sizeof *sorted);
  int32_t *guess = malloc(N * sizeof *guess);
  for (long s = 0; s < steps; s++) {
    int step = start + s;
    uint32_t rng[2], use[2], choose[2];
    split(key + 2 * s, partitionable, rng, use);
    split(rng, partitionable, rng, choose);
    if (s + 1 < steps && memcmp(rng, key + 2 * (s + 1), 8))
      return wrong(run, step, "next key", 0, 0, rng[1], key[2 * s + 3]);
    float ratio = (float)(step + 1) / steps_of_schedule;
    for (long b = 0; b < B; b++) {
      long unknown = 0, unknown_at_start = 0;
      for (long n = 0; n < N; n++) {
        long place = (s * B + b) * N + n;
        unknown += state[place] == -1;
        unknown_at_start += state[b * N + n] == -1;
        /* Sample: the largest logit + noise; log of the softmax at it. */
        const float *row = logits + place * K;
        long best = 0;
        float top = -INFINITY, largest = -INFINITY;
        for (long k = 0; k < K; k++) {
          float score = row[k] + gumbel(draw(use, (b * N + n) * K + k, B * N * K, partitionable));
          if (score > top) top = score, best = k;
          if (row[k] > largest) largest = row[k];
        }
        double sum = 0;
        for (long k = 0; k < K; k++) sum += exp(row[k] - largest);
        guess[n] = state[place] == -1 ? best : state[place];
        if (guess[n] != sampled[place]) return wrong(run, step, "sampled token", b, n, guess[n], sampled[place]);
        /* Score of the choice: known tokens are never masked again. */
        float noise = gumbel(draw(choose, b * N + n, B * N, partitionable));
        float confidence = logf((float)(exp(row[best] - largest) / sum));
        scores[n] = state[place] == -1 ? confidence + temperature * (1 - ratio) * noise : INFINITY;
      }
      /* How many: in float32, rounded down; at least one, and at least one of the unknown is kept. */
      long count = floorf(unknown_at_start * cosf(1.57079633f * ratio));
      if (count > unknown - 1) count = unknown - 1;
      if (count < 1) count = 1;
      if (count != counts[s * B + b]) return wrong(run, step, "mask count", b, 0, count, counts[s * B + b]);
      memcpy(sorted, scores, N * sizeof *scores);
      qsort(sorted, N, sizeof *sorted, compare_floats);
      for (long n = 0; n < N; n++) {
        long place = (s * B + b) * N + n, token = scores[n] < sorted[count] ? -1 : guess[n];
        if (token != next[place]) return wrong(run, step, "next state", b, n, token, next[place]);
      }
    }
  }
  printf("ok   %s: %ld steps, %ld samples\n", run, steps, B);
  return 0;
}

int main(int argc, char **argv) {
  if (argc < 2) fail("usage", "decode PACK/decoding.safetensors [STEPS OF THE SCHEDULE, 12]");
  open_file(argv[1]);
  int steps = argc > 2 ? atoi(argv[2]) : 12;
  int failed = check_run("generation.original", 0, 0, steps);
  failed += check_run("generation.partitionable", 1, 0, steps);
  failed += check_run("editing.original", 0, 2, steps);
  failed += check_run("editing.partitionable", 1, 2, steps);
  return failed != 0;
}
