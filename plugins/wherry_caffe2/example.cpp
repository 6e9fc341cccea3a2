// Runs the bundle's network with Caffe2, and compares the first sample's outputs.
//
//   g++ -std=c++17 -O2 example.cpp -o example
//   ./example FOLDER_OF_THE_BUNDLE [LIBRARY]
//
// As in Python, Caffe2 runs in a process of its own, native/engine, so that this program needs neither
// its headers nor its old ABI; what is said on the pipes stands at the top of native/engine.cc. LIBRARY is a
// libtorch_cpu.so of PyTorch 1.7 to 1.10, where the bundle has none in native/. A bundle without
// native/engine has its source:
//
//   g++ -std=c++11 -O2 engine.cc -o engine -Wl,--wrap=__libc_start_main -ldl

#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>

#include "model.h"

// The number of a type in Caffe2's TensorProto.DataType, and the bytes of one value.
struct Type {
  const char *name;
  uint8_t code;
  std::size_t size;
};

static Type type_of(const std::string &dtype) {
  for (const Type &type : {Type{"float32", 1, 4}, Type{"int32", 2, 4}, Type{"bool", 5, 1},
                           Type{"uint8", 6, 1}, Type{"int64", 10, 8}})
    if (dtype == type.name) return type;
  throw std::runtime_error("a tensor of " + dtype);
}

template <typename Number>
static void put(std::string &message, Number value) {
  message.append(reinterpret_cast<const char *>(&value), sizeof value);
}

static void put_text(std::string &message, const std::string &text) {
  put(message, uint32_t(text.size()));
  message += text;
}

class Engine {
 public:
  explicit Engine(const std::vector<std::string> &command) {
    int to[2], from[2];
    if (pipe(to) != 0 || pipe(from) != 0) throw std::runtime_error("there are no pipes");
    process_ = fork();
    if (process_ < 0) throw std::runtime_error("there is no process");
    if (process_ == 0) {
      dup2(to[0], 0);
      dup2(from[1], 1);
      for (const int end : {to[0], to[1], from[0], from[1]}) close(end);
      std::vector<char *> words;
      for (const std::string &word : command) words.push_back(const_cast<char *>(word.c_str()));
      words.push_back(nullptr);
      execv(words[0], words.data());
      std::perror(words[0]);
      _exit(127);
    }
    close(to[0]);
    close(from[1]);
    requests_ = to[1];
    answers_ = from[0];
  }
  Engine(const Engine &) = delete;
  ~Engine() {  // it ends with its requests
    close(requests_);
    close(answers_);
    waitpid(process_, nullptr, 0);
  }

  std::string ask(const std::string &request) {
    std::string message;
    put_text(message, request);
    for (std::size_t done = 0; done < message.size();) {
      const ssize_t sent = write(requests_, message.data() + done, message.size() - done);
      if (sent < 0 && errno == EINTR) continue;
      if (sent <= 0) throw std::runtime_error("Caffe2's process has ended");
      done += std::size_t(sent);
    }
    return answer();
  }

  std::string answer() {
    uint32_t size = 0;
    const std::string head = take(sizeof size);
    std::memcpy(&size, head.data(), sizeof size);
    const std::string message = take(size);
    if (message.empty() || message[0] != 0) throw std::runtime_error("Caffe2: " + message);
    return message.substr(1);
  }

 private:
  std::string take(std::size_t size) {
    std::string data(size, '\0');
    for (std::size_t done = 0; done < size;) {
      const ssize_t got = read(answers_, &data[done], size - done);
      if (got < 0 && errno == EINTR) continue;
      if (got <= 0) throw std::runtime_error("Caffe2's process has ended");
      done += std::size_t(got);
    }
    return data;
  }

  pid_t process_;
  int requests_, answers_;
};

static std::string library_in(const std::string &folder) {
  if (!model::option("library").empty()) return model::option("library");
  for (const char *name : {"/native/libtorch_cpu.so", "/native/libtorch.so"})
    if (access((folder + name).c_str(), R_OK) == 0) return folder + name;
  throw std::runtime_error("there is no Caffe2 library in native/: name one behind the folder");
}

static bool run(const std::string &folder, const std::string &library) {
  const std::string threads = std::to_string(model::threads);
  const std::string program = folder + "/native/engine";
  setenv("OMP_NUM_THREADS", threads.c_str(), 1);
  setenv("MKL_NUM_THREADS", threads.c_str(), 1);
  chmod(program.c_str(), 0755);  // programs lose their mode in some archives
  Engine engine({program, library, threads, folder + "/artifact/init_net.pb",
                 folder + "/artifact/predict_net.pb"});
  engine.answer();  // the networks are loaded
  std::string inputs = "I", outputs = "O";
  for (const model::Tensor &input : model::inputs) {
    put_text(inputs, input.name);
    put(inputs, type_of(input.dtype).code);
    put(inputs, uint32_t(input.shape.size()));
    for (const int64_t side : input.shape) put(inputs, side);
    const std::vector<char> bytes = model::sample(folder, input);
    inputs.append(bytes.begin(), bytes.end());
  }
  for (const model::Tensor &output : model::outputs) put_text(outputs, output.name);
  engine.ask(inputs);
  engine.ask("R");
  const std::string given = engine.ask(outputs);
  bool same = true;
  std::size_t at = 0;
  for (const model::Tensor &output : model::outputs) {  // name, type, axes, values
    const Type type = type_of(output.dtype);
    std::size_t bytes = type.size;
    for (const int64_t side : output.shape) bytes *= std::size_t(side);
    at += 4 + std::strlen(output.name);
    const bool is_type = at < given.size() && uint8_t(given[at]) == type.code;
    at += 1 + 4 + 8 * output.shape.size();
    if (!is_type || at + bytes > given.size())
      throw std::runtime_error(std::string("Caffe2 gave another tensor than ") + output.name);
    same = model::check(folder, output, given.data() + at, bytes) && same;
    at += bytes;
  }
  return same;
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);  // where Caffe2's process ends, writing says so
  try {
    const std::string folder = argc > 1 ? argv[1] : "..";
    return run(folder, argc > 2 ? argv[2] : library_in(folder)) ? 0 : 1;
  } catch (const std::exception &error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 2;
  }
}
