// What the words of a tensor must be: a closed form that every kernel of the model keeps, so that a
// result can be checked word for word without computing it a second time.
#pragma once

#include <cstddef>
#include <cstdint>

namespace server {

using Word = std::uint32_t;

/// Words of one head; a row of the model is a whole number of heads.
inline constexpr Word kHead = 256;

/// A tensor whose word `i` is `start + per_word * i + per_head * (i / kHead)`, wrapping around.
struct Pattern {
  Word start = 0;
  Word per_word = 0;
  Word per_head = 0;

  [[nodiscard]] Word at(Word i) const { return start + per_word * i + per_head * (i / kHead); }

  [[nodiscard]] Pattern times(Word factor) const {
    return {start * factor, per_word * factor, per_head * factor};
  }
  [[nodiscard]] Pattern plus(const Pattern& other) const {
    return {start + other.start, per_word + other.per_word, per_head + other.per_head};
  }
  /// Of a tensor without `per_head`, each word repeated over a head.
  [[nodiscard]] Pattern expandedToHeads() const { return {start, 0, per_word}; }
  /// The sums of whole heads.
  [[nodiscard]] Pattern summedByHead() const {
    return {start * kHead + per_word * (kHead * (kHead - 1) / 2),
            per_word * kHead * kHead + per_head * kHead, 0};
  }
  /// The sums down the columns of a matrix with rows of `columns` words, whole heads.
  [[nodiscard]] Pattern summedByColumn(std::size_t rows, std::size_t columns) const {
    const auto count = static_cast<Word>(rows);
    const auto row = static_cast<Word>(columns);
    const auto pairs = static_cast<Word>(std::uint64_t{rows} * (rows - 1) / 2);
    return {start * count + (per_word * row + per_head * (row / kHead)) * pairs, per_word * count,
            per_head * count};
  }
};

}  // namespace server
