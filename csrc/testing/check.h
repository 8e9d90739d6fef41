// A test program in one header: TEST(name) { CHECK(...); } registers a test, and the main() at the
// end of this file runs them all. One translation unit per program includes it.
//
//   ./test_x            runs every test and prints one line each; exit code 0 only if all pass
//   ./test_x word tile  runs the tests whose name contains "word" or "tile"
#pragma once

#include <cstdio>
#include <cstring>
#include <exception>
#include <sstream>
#include <string>
#include <vector>

namespace nnkernels::testing {

struct Test {
  const char* name;
  void (*run)();
};

inline std::vector<Test>& tests() {
  static std::vector<Test> list;
  return list;
}

struct Registration {
  Registration(const char* name, void (*run)()) { tests().push_back({name, run}); }
};

// Failed checks of the running test. Only the first few are printed: one wrong constant can break a
// million elements.
inline int failures = 0;
inline constexpr int printed_failures = 5;

inline void report_failure(const char* file, int line, const std::string& what) {
  if (++failures <= printed_failures) {
    const char* slash = std::strrchr(file, '/');
    std::printf("  %s:%d: %s\n", slash ? slash + 1 : file, line, what.c_str());
  }
}

template <typename A, typename B>
void check_equal(const A& a, const B& b, const char* text, const char* file, int line) {
  if (a == b) return;
  std::ostringstream what;
  what.precision(9);
  // Unary plus prints small integers as numbers, not as characters.
  if constexpr (requires { what << +a << +b; }) {
    what << text << ": " << +a << " != " << +b;
  } else if constexpr (requires { what << a << b; }) {
    what << text << ": " << a << " != " << b;
  } else {
    what << text << ": not equal";
  }
  report_failure(file, line, what.str());
}

inline int run_tests(int argc, char** argv) {
  int run = 0;
  int failed = 0;
  for (const Test& test : tests()) {
    bool wanted = argc < 2;
    for (int i = 1; i < argc; ++i) wanted |= std::strstr(test.name, argv[i]) != nullptr;
    if (!wanted) continue;
    failures = 0;
    try {
      test.run();
    } catch (const std::exception& error) {
      report_failure(__FILE__, __LINE__, std::string("unexpected exception: ") + error.what());
    }
    ++run;
    failed += failures != 0;
    std::printf("%s %s", failures ? "FAIL" : "ok  ", test.name);
    if (failures) std::printf(" (%d failed checks)", failures);
    std::printf("\n");
    std::fflush(stdout);
  }
  std::printf("%d tests, %d failed\n", run, failed);
  return failed != 0 || run == 0;
}

}  // namespace nnkernels::testing

#define TEST(name)                                                                         \
  static void test_##name();                                                               \
  static const ::nnkernels::testing::Registration registration_##name(#name, test_##name); \
  static void test_##name()

#define CHECK(...)                                                                         \
  do {                                                                                     \
    if (!(__VA_ARGS__)) {                                                                  \
      ::nnkernels::testing::report_failure(__FILE__, __LINE__, "not true: " #__VA_ARGS__); \
    }                                                                                      \
  } while (0)

#define CHECK_EQ(a, b) ::nnkernels::testing::check_equal((a), (b), #a " == " #b, __FILE__, __LINE__)

// The statement must throw an exception whose text contains `part`.
#define CHECK_THROWS(statement, part)                                                           \
  do {                                                                                          \
    std::string thrown = "nothing";                                                             \
    try {                                                                                       \
      statement;                                                                                \
    } catch (const std::exception& error) {                                                     \
      thrown = error.what();                                                                    \
    }                                                                                           \
    if (thrown.find(part) == std::string::npos) {                                               \
      ::nnkernels::testing::report_failure(__FILE__, __LINE__, #statement " threw: " + thrown); \
    }                                                                                           \
  } while (0)

int main(int argc, char** argv) { return nnkernels::testing::run_tests(argc, argv); }
