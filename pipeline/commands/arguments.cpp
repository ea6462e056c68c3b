#include "pipeline/commands/arguments.h"

#include <algorithm>

#include "configs/errors.h"  // ConfigError

namespace coppice {

RecipeFlags::RecipeFlags(CLI::App& app, const std::vector<std::string>& wanted) {
  const auto is_wanted = [&](const std::string& name) {
    return std::find(wanted.begin(), wanted.end(), name) != wanted.end();
  };
  for (const RecipeKey& key : recipe_keys()) {
    if (!wanted.empty() && !is_wanted(key.section) && !is_wanted(key.path())) continue;
    app.add_option(key.flag(), given_[key.flag()], key.help)
        ->group(key.section)
        ->type_name(key.is_list ? "LIST" : "VALUE")
        ->expected(1)
        ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll);
  }
}

std::vector<std::string> RecipeFlags::apply(Recipe& recipe) const {
  std::vector<std::string> set;
  for (const RecipeKey& key : recipe_keys()) {
    const auto found = given_.find(key.flag());
    if (found == given_.end() || found->second.empty()) continue;
    std::string text = found->second.back();
    if (key.is_list) {  // a repeated flag continues the list
      text = found->second.front();
      for (size_t i = 1; i < found->second.size(); ++i) text += "," + found->second[i];
    }
    set_recipe_key(recipe, key.flag(), text);
    set.push_back(key.path());
  }
  return set;
}

bool parse_arguments(CLI::App& app, std::vector<std::string> arguments) {
  app.allow_extras();
  std::reverse(arguments.begin(), arguments.end());  // as CLI11 wants a vector
  try {
    app.parse(arguments);
  } catch (const CLI::CallForHelp& help) {
    app.exit(help);
    return false;
  } catch (const CLI::ParseError& error) {
    throw ConfigError(app.get_name() + ": " + error.what() + "; see coppice " + app.get_name() +
                      " --help");
  }
  const std::vector<std::string> unknown = app.remaining();
  if (unknown.empty()) return true;
  std::vector<std::string> known;
  for (const CLI::Option* option : app.get_options()) {
    for (const std::string& name : option->get_lnames()) known.push_back("--" + name);
  }
  const std::string word = unknown[0].substr(0, unknown[0].find('='));
  if (word.rfind("--", 0) != 0) {
    throw ConfigError(app.get_name() + ": " + word + ": one argument too many");
  }
  throw ConfigError(app.get_name() + ": " + word + ": unknown flag; did you mean " +
                    nearest(word, known) + "?");
}

void add_common_flags(CLI::App& app, CommonFlags& flags) {
  app.add_flag("--quiet,-q", flags.quiet, "Only errors and the result");
  app.add_flag("--verbose,-v", flags.verbose, "More about what is done");
}

}  // namespace coppice
