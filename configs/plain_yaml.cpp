#include "configs/plain_yaml.h"

#include <fmt/format.h>
#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/mark.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <sstream>
#include <utility>

#include "configs/errors.h"

namespace coppice {
namespace {

// yaml-cpp's own tree resolves aliases and lets the later of two equal keys win without a word. Its
// events still show all of that, so the tree is built here.
class TreeBuilder final : public YAML::EventHandler {
 public:
  explicit TreeBuilder(std::string file) : file_(std::move(file)) {}

  YamlNode take_root() { return std::move(root_); }

  void OnDocumentStart(const YAML::Mark& mark) override {
    if (++num_documents_ > 1) refuse(mark, "a second document; one file holds one");
  }
  void OnDocumentEnd() override {}

  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    refuse_decoration(mark, "?", anchor);
    attach(node_at(mark, YamlNode::Kind::kNothing), mark);
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    refuse(mark, "an alias (*name); write the value out");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    refuse_decoration(mark, tag, anchor);
    YamlNode node = node_at(mark, YamlNode::Kind::kScalar);
    node.text = value;
    attach(std::move(node), mark);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kList);
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(mark, tag, anchor, YamlNode::Kind::kMap);
  }
  void OnMapEnd() override { close(); }

 private:
  struct Open {
    YamlNode node;
    YAML::Mark mark;
    bool has_key = false;  // of a map: the key was read, its value comes next
    std::string key;
    int key_line = 1;
  };

  [[noreturn]] void refuse(const YAML::Mark& mark, const std::string& what) const {
    throw ConfigError(fmt::format("{}:{}: {}", file_, mark.line + 1, what));
  }

  static YamlNode node_at(const YAML::Mark& mark, YamlNode::Kind kind) {
    YamlNode node;
    node.kind = kind;
    node.line = mark.line + 1;
    return node;
  }

  // "?" and "!" are what the parser reports for plain and for quoted values without a tag.
  void refuse_decoration(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor) {
    if (anchor != 0) refuse(mark, "an anchor (&name); write the value where it is wanted");
    if (tag != "?" && tag != "!") {
      refuse(mark, fmt::format("a tag ({}); values are read as the key wants them", tag));
    }
  }

  void open(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
            YamlNode::Kind kind) {
    refuse_decoration(mark, tag, anchor);
    Open opened;
    opened.node = node_at(mark, kind);
    opened.mark = mark;
    open_.push_back(std::move(opened));
  }

  void close() {
    Open closed = std::move(open_.back());
    open_.pop_back();
    attach(std::move(closed.node), closed.mark);
  }

  void attach(YamlNode node, const YAML::Mark& mark) {
    if (open_.empty()) {
      root_ = std::move(node);
      return;
    }
    Open& parent = open_.back();
    if (parent.node.kind == YamlNode::Kind::kMap) {
      if (!parent.has_key) return take_key(parent, node, mark);
      node.key = std::move(parent.key);
      node.line = parent.key_line;
      parent.has_key = false;
    }
    parent.node.children.push_back(std::move(node));
  }

  void take_key(Open& parent, const YamlNode& key, const YAML::Mark& mark) const {
    if (key.kind != YamlNode::Kind::kScalar) refuse(mark, "a key must be a word");
    if (key.text == "<<") refuse(mark, "a merge key (<<); write the keys out");
    for (const YamlNode& sibling : parent.node.children) {
      if (sibling.key != key.text) continue;
      refuse(mark, fmt::format("{}: the key occurs twice, first in line {}; keep one", key.text,
                               sibling.line));
    }
    parent.has_key = true;
    parent.key = key.text;
    parent.key_line = key.line;
  }

  std::string file_;
  YamlNode root_;
  std::vector<Open> open_;
  int num_documents_ = 0;
};

}  // namespace

YamlNode parse_yaml(const std::string& file, const std::string& text) {
  TreeBuilder builder(file);
  std::istringstream stream(text);
  try {
    YAML::Parser parser(stream);
    while (parser.HandleNextDocument(builder)) {
    }
  } catch (const YAML::Exception& error) {
    throw ConfigError(
        fmt::format("{}:{}: no YAML: {}", file, std::max(error.mark.line, 0) + 1, error.msg));
  }
  return builder.take_root();
}

}  // namespace coppice
