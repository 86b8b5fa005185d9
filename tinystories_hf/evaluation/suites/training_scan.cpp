// Exact searches for generations in a training corpus. Each scans the corpus once and needs memory
// only for the generations. The corpus is memory-mapped word ids, with a 0 after each story.

#include <omp.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <exception>
#include <vector>

namespace {

using Word = uint32_t;

constexpr int64_t kNone = -1;

uint64_t mix(uint64_t x) {
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ull;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93ull;
  return x ^ (x >> 32);
}

uint64_t hash_words(const Word* words, int64_t k) {
  uint64_t hash = 0;
  for (int64_t i = 0; i < k; i++) hash = mix(hash + 0x9e3779b97f4a7c15ull + words[i]);
  return hash;
}

uint64_t power_of_two(uint64_t least) {
  uint64_t size = 64;
  while (size < least) size *= 2;
  return size;
}

// A hash table of distinct k-grams, (count, k); `find` returns the number of a k-gram, or kNone.
class KGrams {
 public:
  KGrams(const Word* grams, int64_t count, int64_t k)
      : grams_(grams), k_(k), slots_(power_of_two(4 * count), kNone), bits_(kBits / 64) {
    for (int64_t gram = 0; gram < count; gram++) {
      const uint64_t hash = hash_words(grams + gram * k, k);
      uint64_t slot = hash & (slots_.size() - 1);
      while (slots_[slot] != kNone) slot = (slot + 1) & (slots_.size() - 1);
      slots_[slot] = gram;
      bits_[(hash >> 40) % kBits / 64] |= 1ull << ((hash >> 40) % 64);
    }
  }

  int64_t find(const Word* words) const {
    const uint64_t hash = hash_words(words, k_);
    // Most k-grams of a corpus occur in no generation: this bit set rejects them and fits the cache.
    if (!(bits_[(hash >> 40) % kBits / 64] >> ((hash >> 40) % 64) & 1)) return kNone;
    uint64_t slot = hash & (slots_.size() - 1);
    for (; slots_[slot] != kNone; slot = (slot + 1) & (slots_.size() - 1)) {
      if (!std::memcmp(grams_ + slots_[slot] * k_, words, k_ * sizeof(Word))) return slots_[slot];
    }
    return kNone;
  }

 private:
  static constexpr uint64_t kBits = 1 << 21;
  const Word* grams_;
  int64_t k_;
  std::vector<int64_t> slots_;
  std::vector<uint64_t> bits_;
};

// The suffix automaton of all generations (Blumer et al., 1985): it accepts all their substrings.
class Automaton {
 public:
  struct State {
    int32_t length = 0, link = -1;
    std::vector<std::pair<Word, int32_t>> next;
  };

  Automaton() : states_(1) {}

  void add(const Word* words, int64_t count) {
    int32_t last = 0;
    for (int64_t i = 0; i < count; i++) last = extend(last, words[i]);
  }

  // Must be called once, after the last add.
  void finish() {
    size_t edges = 0;
    for (const State& state : states_) edges += state.next.size();
    slots_.assign(power_of_two(2 * edges), {~0ull, 0});
    for (size_t from = 0; from < states_.size(); from++) {
      for (const auto& [word, to] : states_[from].next) {
        const uint64_t key = uint64_t(from) << 32 | word;
        uint64_t slot = mix(key) & (slots_.size() - 1);
        while (slots_[slot].first != ~0ull) slot = (slot + 1) & (slots_.size() - 1);
        slots_[slot] = {key, to};
      }
    }
  }

  int32_t step(int32_t from, Word word) const {
    const uint64_t key = uint64_t(from) << 32 | word;
    uint64_t slot = mix(key) & (slots_.size() - 1);
    for (; slots_[slot].first != ~0ull; slot = (slot + 1) & (slots_.size() - 1)) {
      if (slots_[slot].first == key) return slots_[slot].second;
    }
    return -1;
  }

  const State& state(int32_t number) const { return states_[number]; }
  int32_t size() const { return int32_t(states_.size()); }

 private:
  static int32_t* find(State& state, Word word) {
    for (auto& edge : state.next) {
      if (edge.first == word) return &edge.second;
    }
    return nullptr;
  }

  int32_t split(int32_t from, Word word, int32_t to) {
    const int32_t copy = size();
    State copied = states_[to];
    copied.length = states_[from].length + 1;
    states_.push_back(std::move(copied));
    states_[to].link = copy;
    for (int32_t at = from; at != -1; at = states_[at].link) {
      int32_t* edge = find(states_[at], word);
      if (!edge || *edge != to) break;
      *edge = copy;
    }
    return copy;
  }

  int32_t extend(int32_t last, Word word) {
    if (int32_t* known = find(states_[last], word)) {
      const int32_t to = *known;
      return states_[to].length == states_[last].length + 1 ? to : split(last, word, to);
    }
    const int32_t fresh = size();
    states_.emplace_back();
    states_[fresh].length = states_[last].length + 1;
    int32_t at = last;
    for (; at != -1 && !find(states_[at], word); at = states_[at].link) {
      states_[at].next.emplace_back(word, fresh);
    }
    if (at == -1) {
      states_[fresh].link = 0;
    } else {
      const int32_t to = *find(states_[at], word);
      const bool contiguous = states_[to].length == states_[at].length + 1;
      const int32_t link = contiguous ? to : split(at, word, to);
      states_[fresh].link = link;
    }
    return fresh;
  }

  std::vector<State> states_;
  std::vector<std::pair<uint64_t, int32_t>> slots_;
};

// Calls `run` and returns false if there is not enough memory. `run` must allocate outside of parallel
// regions, since no exception may leave those.
template <typename Run>
bool with_memory(Run run) {
  try {
    run();
    return true;
  } catch (const std::exception&) {  // bad_alloc or length_error
    return false;
  }
}

// Returns a vector of `count` numbers for each thread.
template <typename Number>
std::vector<std::vector<Number>> for_each_thread(int64_t count, Number value) {
  const std::vector<Number> one(count, value);
  return std::vector<std::vector<Number>>(omp_get_max_threads(), one);
}

// Counts how often each of the distinct k-grams, (count, k), occurs in the corpus.
void count_grams(const Word* corpus, const int64_t* starts, int64_t stories, const Word* grams,
                 int64_t count, int64_t k, int64_t* counts) {
  const KGrams known(grams, count, k);
  std::fill(counts, counts + count, 0);
  auto all = for_each_thread<int64_t>(count, 0);
#pragma omp parallel
  {
    std::vector<int64_t>& mine = all[omp_get_thread_num()];
#pragma omp for schedule(dynamic, 1024)
    for (int64_t story = 0; story < stories; story++) {
      for (int64_t at = starts[story]; at + k < starts[story + 1]; at++) {
        const int64_t gram = known.find(corpus + at);
        if (gram != kNone) mine[gram]++;
      }
    }
#pragma omp critical
    for (int64_t gram = 0; gram < count; gram++) counts[gram] += mine[gram];
  }
}

// Finds for each text the story that contains most of its distinct k-grams, the first one in a tie.
// The texts with k-gram g are `users[users_starts[g]]` to `users[users_starts[g + 1] - 1]`.
void find_nearest(const Word* corpus, const int64_t* starts, int64_t stories, const Word* grams,
                  int64_t count, int64_t k, const int64_t* users_starts, const int32_t* users,
                  int64_t texts, int64_t* nearest, int64_t* shared) {
  const KGrams known(grams, count, k);
  std::fill(nearest, nearest + texts, kNone);
  std::fill(shared, shared + texts, 0);
  auto all_last = for_each_thread(count, kNone), all_best = for_each_thread(texts, kNone);
  auto all_here = for_each_thread<int32_t>(texts, 0), all_most = all_here;
#pragma omp parallel
  {
    const int thread = omp_get_thread_num();
    std::vector<int64_t>&last = all_last[thread], &best = all_best[thread];
    std::vector<int32_t>&here = all_here[thread], &most = all_most[thread];
#pragma omp for schedule(dynamic, 1024)
    for (int64_t story = 0; story < stories; story++) {
      std::fill(here.begin(), here.end(), 0);
      for (int64_t at = starts[story]; at + k < starts[story + 1]; at++) {
        const int64_t gram = known.find(corpus + at);
        if (gram == kNone || last[gram] == story) continue;
        last[gram] = story;
        for (int64_t user = users_starts[gram]; user < users_starts[gram + 1]; user++) {
          here[users[user]]++;
        }
      }
      for (int64_t text = 0; text < texts; text++) {
        // Each thread gets stories in increasing order, so the first one of a tie is kept.
        if (here[text] > most[text]) {
          most[text] = here[text];
          best[text] = story;
        }
      }
    }
#pragma omp critical
    for (int64_t text = 0; text < texts; text++) {
      const bool earlier = most[text] == shared[text] && best[text] < nearest[text];
      if (best[text] != kNone && (most[text] > shared[text] || earlier)) {
        shared[text] = most[text];
        nearest[text] = best[text];
      }
    }
  }
}

// Finds for each text the length of its longest run of words that occurs in one story.
void find_longest(const Word* corpus, const int64_t* starts, int64_t stories, const Word* words,
                  const int64_t* text_starts, int64_t texts, int64_t* longest) {
  Automaton automaton;
  for (int64_t text = 0; text < texts; text++) {
    automaton.add(words + text_starts[text], text_starts[text + 1] - text_starts[text]);
  }
  automaton.finish();
  std::vector<int32_t> found(automaton.size());
  auto all = for_each_thread<int32_t>(automaton.size(), 0);
#pragma omp parallel
  {
    std::vector<int32_t>& mine = all[omp_get_thread_num()];
#pragma omp for schedule(dynamic, 1024)
    for (int64_t story = 0; story < stories; story++) {
      int32_t state = 0, length = 0;
      for (int64_t at = starts[story]; at + 1 < starts[story + 1]; at++) {
        int32_t to = automaton.step(state, corpus[at]);
        while (to == -1 && state != 0) {
          state = automaton.state(state).link;
          length = automaton.state(state).length;
          to = automaton.step(state, corpus[at]);
        }
        if (to == -1) continue;
        state = to;
        mine[state] = std::max(mine[state], ++length);
      }
    }
#pragma omp critical
    for (int32_t state = 0; state < automaton.size(); state++) {
      found[state] = std::max(found[state], mine[state]);
    }
  }
  // A match of a state is also a match of the shorter suffixes that it links to.
  std::vector<int32_t> order(automaton.size());
  for (int32_t state = 0; state < automaton.size(); state++) order[state] = state;
  std::sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
    return automaton.state(a).length > automaton.state(b).length;
  });
  for (int32_t state : order) {
    const int32_t link = automaton.state(state).link;
    if (link > 0 && found[state] > 0) found[link] = automaton.state(link).length;
  }
  for (int64_t text = 0; text < texts; text++) {
    longest[text] = 0;
    int32_t state = 0;
    for (int64_t at = text_starts[text]; at < text_starts[text + 1]; at++) {
      state = automaton.step(state, words[at]);
      for (int32_t up = state; up > 0; up = automaton.state(up).link) {
        if (found[up] > 0) {
          longest[text] = std::max<int64_t>(longest[text], found[up]);
          break;
        }
      }
    }
  }
}

}  // namespace

extern "C" {

bool scan_counts(const Word* corpus, const int64_t* starts, int64_t stories, const Word* grams,
                 int64_t count, int64_t k, int64_t* counts) {
  return with_memory([&] { count_grams(corpus, starts, stories, grams, count, k, counts); });
}

bool scan_nearest(const Word* corpus, const int64_t* starts, int64_t stories, const Word* grams,
                  int64_t count, int64_t k, const int64_t* users_starts, const int32_t* users,
                  int64_t texts, int64_t* nearest, int64_t* shared) {
  return with_memory([&] {
    find_nearest(corpus, starts, stories, grams, count, k, users_starts, users, texts, nearest,
                 shared);
  });
}

bool scan_longest(const Word* corpus, const int64_t* starts, int64_t stories, const Word* words,
                  const int64_t* text_starts, int64_t texts, int64_t* longest) {
  return with_memory(
      [&] { find_longest(corpus, starts, stories, words, text_starts, texts, longest); });
}

}  // extern "C"
