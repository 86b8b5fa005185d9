// Tokenizes ASCII text by looking up its words, most of which repeat.
//
// GPT-2's tokenizer splits a text into words first, and the tokens of a word do not depend on the
// words around it. Each different word is therefore tokenized once, by the tokenizer itself, and
// looked up afterwards.

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

namespace {

struct Entry {
  uint64_t hash = 0;
  uint32_t word_at = 0, word_size = 0;  // a size of 0: free
  uint32_t ids_at = 0, ids_count = 0;
};

struct Words {
  std::vector<Entry> entries = std::vector<Entry>(1 << 12);
  std::vector<uint8_t> text;
  std::vector<uint32_t> ids;
  size_t count = 0;
};

uint64_t hash_of(const uint8_t *word, size_t size) {
  uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
  for (size_t i = 0; i < size; ++i) hash = (hash ^ word[i]) * 0x100000001b3ull;
  return hash ^ (hash >> 32);
}

// Returns the entry of a word, or the free entry where it would be inserted.
Entry *find(Words &words, const uint8_t *word, size_t size, uint64_t hash) {
  const size_t mask = words.entries.size() - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    Entry &entry = words.entries[at];
    if (!entry.word_size) return &entry;
    if (entry.hash == hash && entry.word_size == size &&
        !std::memcmp(&words.text[entry.word_at], word, size))
      return &entry;
  }
}

void grow(Words &words) {
  std::vector<Entry> old(words.entries.size() * 2);
  old.swap(words.entries);
  const size_t mask = words.entries.size() - 1;
  for (const Entry &entry : old) {
    if (!entry.word_size) continue;
    size_t at = entry.hash & mask;
    while (words.entries[at].word_size) at = (at + 1) & mask;
    words.entries[at] = entry;
  }
}

enum Kind : uint8_t { kOther, kLetter, kDigit, kSpace, kUnknown };

Kind kind(uint8_t c) {
  if ((c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z')) return kLetter;
  if (c >= '0' && c <= '9') return kDigit;
  if (c == ' ' || (c >= '\t' && c <= '\r')) return kSpace;
  return c < ' ' || c > '~' ? kUnknown : kOther;
}

// Returns the end of the word that begins at `at`, by GPT-2's pattern for ASCII:
// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
const uint8_t *word_end(const uint8_t *at, const uint8_t *end) {
  if (*at == '\'' && end - at > 1) {
    if (std::memchr("stmd", at[1], 4)) return at + 2;
    if (end - at > 2 && ((at[2] == 'e' && (at[1] == 'r' || at[1] == 'v')) ||
                         (at[2] == 'l' && at[1] == 'l')))
      return at + 3;
  }
  const uint8_t *body = *at == ' ' ? at + 1 : at;
  if (body < end && kind(*body) != kSpace) {
    const Kind first = kind(*body);
    while (body < end && kind(*body) == first) ++body;
    return body;
  }
  const uint8_t *after = at;
  while (after < end && kind(*after) == kSpace) ++after;
  return after == end || after - at == 1 ? after : after - 1;
}

}  // namespace

extern "C" {

// Returns null if memory runs out.
Words *words_new() {
  try {
    return new Words;
  } catch (const std::exception &) {
    return nullptr;
  }
}
void words_free(Words *words) { delete words; }
int64_t words_count(const Words *words) { return (int64_t)words->count; }

// Returns false, without a change, if the word cannot be stored: it is empty or has more tokens than
// bytes, or memory or 32-bit offsets run out.
bool words_add(Words *words, const uint8_t *word, int64_t size, const uint32_t *ids,
               int64_t count) try {
  const uint64_t text_at = words->text.size(), ids_at = words->ids.size();
  if (size < 1 || count < 0 || count > size || text_at + size > UINT32_MAX) return false;
  if ((words->count + 1) * 2 > words->entries.size()) grow(*words);
  const uint64_t hash = hash_of(word, size);
  Entry *entry = find(*words, word, size, hash);
  if (entry->word_size) return true;
  words->text.insert(words->text.end(), word, word + size);
  words->ids.insert(words->ids.end(), ids, ids + count);
  *entry = {hash, (uint32_t)text_at, (uint32_t)size, (uint32_t)ids_at, (uint32_t)count};
  ++words->count;
  return true;
} catch (const std::exception &) {
  return false;
}

// Writes the tokens of stories that each end with a zero byte, with `eos` after each story, and
// returns their number; `ids` has room for one token per byte. Unknown words are listed in `unknown`
// by their begin and end, at most `room` of them; the tokens are incomplete then. Returns -1 for a
// byte that is neither printable ASCII nor white space, or if the last byte is not zero.
int64_t words_encode(Words *words, const uint8_t *text, int64_t size, uint32_t eos, uint32_t *ids,
                     int64_t *unknown, int64_t room, int64_t *unknown_count) {
  uint32_t *next = ids;
  const uint8_t *at = text, *last = text + size;
  *unknown_count = 0;
  while (at < last) {
    const uint8_t *end = (const uint8_t *)std::memchr(at, 0, last - at);
    if (!end) return -1;
    for (const uint8_t *c = at; c < end; ++c)
      if (kind(*c) == kUnknown) return -1;
    while (at < end) {
      const uint8_t *after = word_end(at, end);
      const Entry *entry = find(*words, at, after - at, hash_of(at, after - at));
      if (entry->word_size) {
        next = std::copy_n(words->ids.data() + entry->ids_at, entry->ids_count, next);
      } else if (*unknown_count < room) {
        unknown[2 * *unknown_count] = at - text;
        unknown[2 * (*unknown_count)++ + 1] = after - text;
      }
      at = after;
    }
    *next++ = eos;
    at = end + 1;
  }
  return next - ids;
}
}
