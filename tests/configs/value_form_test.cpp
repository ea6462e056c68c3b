#include "configs/value_form.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace coppice {
namespace {

using ::testing::AllOf;
using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;
using ::testing::StartsWith;
using ::testing::ThrowsMessage;

template <typename T>
auto reading(const ValueForm<T>& form, const std::string& text) {
  return [form, text] { form.read(text); };
}

TEST(ValueForm, WholeNumbersKnowTheirLeastValue) {
  EXPECT_EQ(whole_number(1).read("1"), 1);
  EXPECT_THAT(reading(whole_number(1), "0"),
              ThrowsMessage<ConfigError>("0: must be a whole number, at least 1"));
}

TEST(ValueForm, WholeNumbersAreWholeTexts) {
  for (const char* text : {"", "1.0", "1e3", "0x10", "12 ", "many", "99999999999", "+1"}) {
    EXPECT_THROW(whole_number(0).read(text), ConfigError) << text;
  }
}

TEST(ValueForm, SeedsHave64Bits) {
  EXPECT_EQ(seed_number().read("18446744073709551615"), UINT64_MAX);
  EXPECT_EQ(seed_number().print(UINT64_MAX), "18446744073709551615");
  EXPECT_THROW(seed_number().read("-1"), ConfigError);
  EXPECT_THROW(seed_number().read("18446744073709551616"), ConfigError);
}

TEST(ValueForm, RealNumbersAreFiniteAndInRange) {
  const auto form = real_number([](double x) { return x > 0; }, "greater than 0");
  EXPECT_EQ(form.read("1e-4"), 1e-4);
  EXPECT_EQ(form.read("1.0e-4"), 1e-4);
  for (const char* text : {"0", "-1", "nan", "inf", "1e999", "0.5x", "", "1,5"}) {
    EXPECT_THAT(reading(form, text),
                ThrowsMessage<ConfigError>(HasSubstr("must be a number, greater than 0")))
        << text;
  }
}

TEST(ValueForm, RealNumbersReadBackToTheSameBits) {
  const auto form = real_number([](double) { return true; }, "any");
  for (const double number : {0.1, 1.0 / 3, 1e-4, 5e-324, 1e300, 0.0625, 2.0 / 3}) {
    EXPECT_EQ(form.read(form.print(number)), number);
  }
}

TEST(ValueForm, FactsAreTrueOrFalse) {
  EXPECT_TRUE(true_or_false().read("true"));
  EXPECT_FALSE(true_or_false().read("false"));
  EXPECT_THAT(reading(true_or_false(), "yes"),
              ThrowsMessage<ConfigError>("yes: unknown; one of true, false"));
}

TEST(ValueForm, UnknownWordsAreToldTheKnownOnes) {
  const auto form = one_of<int>({{"one", 1}, {"two", 2}}, {"three"});
  EXPECT_EQ(form.read("two"), 2);
  EXPECT_EQ(form.print(1), "one");
  EXPECT_THAT(reading(form, "too"), ThrowsMessage<ConfigError>("too: unknown; one of one, two"));
}

TEST(ValueForm, WordsOfLaterVersionsAreToldSo) {
  const auto form = one_of<int>({{"one", 1}}, {"three"});
  EXPECT_THAT(reading(form, "three"),
              ThrowsMessage<ConfigError>("three: comes later; this version has one"));
}

TEST(ValueForm, PatternsKeepNOfEveryM) {
  EXPECT_TRUE(sparsity_pattern().read("unstructured").is_unstructured());
  const SparsityPattern pattern = sparsity_pattern().read("2:4");
  EXPECT_EQ(pattern.num_kept, 2);
  EXPECT_EQ(pattern.group_size, 4);
  EXPECT_EQ(sparsity_pattern().print(sparsity_pattern().read("1:64")), "1:64");
}

TEST(ValueForm, PatternsOutsideTheBoundsAreRefused) {
  for (const char* text : {"4:2", "4:4", "0:4", "1:65", "2:4:8", "2", ":", "-1:4", "1:1000", ""}) {
    EXPECT_THAT(reading(sparsity_pattern(), text),
                ThrowsMessage<ConfigError>(HasSubstr("1 <= N < M <= 64")))
        << text;
  }
}

TEST(ValueForm, DevicesHaveAKindAndANumber) {
  for (const char* text : {"auto", "cpu", "cuda:0", "cuda:12", "cpu,cpu", "cuda:0,cuda:1"}) {
    EXPECT_EQ(device_name().read(text), text);
  }
  for (const char* text :
       {"cuda", "gpu", "cuda:", "cuda:x", "CPU", "", "cpu,", "cpu,cuda:0", "cuda:0,auto"}) {
    EXPECT_THAT(reading(device_name(), text), ThrowsMessage<ConfigError>(HasSubstr("cuda:0")))
        << text;
  }
}

TEST(ValueForm, BudgetsArePrintedInTheLargestUnitThatIsExact) {
  EXPECT_EQ(byte_budget().print(0), "auto");
  EXPECT_EQ(byte_budget().print(uint64_t{24} << 30), "24GiB");
  EXPECT_EQ(byte_budget().print((uint64_t{24} << 30) + 1024), "25165825KiB");
  EXPECT_EQ(byte_budget().print(24'000'000'001), "24000000001");
}

TEST(ValueForm, SlabsAreMultiplesOfTheirUnit) {
  EXPECT_EQ(byte_multiple(4096).read("64MiB"), uint64_t{64} << 20);
  for (const char* text : {"1000", "auto", "4095"}) {
    EXPECT_THAT(reading(byte_multiple(4096), text),
                ThrowsMessage<ConfigError>(AllOf(StartsWith(text), HasSubstr("4096"))));
  }
}

TEST(ValueForm, NamesAreSeparatedByCommas) {
  EXPECT_THAT(name_list().read("lm_head, re:.*q_proj"), ElementsAre("lm_head", "re:.*q_proj"));
  EXPECT_THAT(name_list().read(""), IsEmpty());
  EXPECT_THAT(name_list().read("  "), IsEmpty());
}

TEST(ValueForm, ADoubledCommaIsAComma) {
  EXPECT_THAT(name_list().read("re:a{1,,2},b"), ElementsAre("re:a{1,2}", "b"));
  EXPECT_EQ(name_list().print({"re:a{1,2}", "b"}), "re:a{1,,2},b");
}

TEST(ValueForm, NamesReadBackWhatWasPrinted) {
  const std::vector<std::string> names = {"re:a{1,}", "re:x,,y", "b,", "re:\\\\", "it's \"q\" #:"};
  EXPECT_EQ(name_list().read(name_list().print(names)), names);
}

TEST(ValueForm, EntriesThatAreNoNamesAreRefused) {
  for (const char* text : {",", "a,", ",a", ",,a", "a, ,b", "a\nb", "a,b\t\x01"}) {
    EXPECT_THROW(name_list().read(text), ConfigError) << text;
  }
}

}  // namespace
}  // namespace coppice
