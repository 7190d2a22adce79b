// A memory that answers after two cycles.
module lk_memory #(
  parameter WIDTH = 8,
  parameter BITS = 4
) (
  input wire clk,
  input wire write,
  input wire [BITS-1:0] to,
  input wire [WIDTH-1:0] in,
  input wire [BITS-1:0] from,
  output reg [WIDTH-1:0] out
);
  reg [WIDTH-1:0] memory [0:(1<<BITS)-1];
  reg [WIDTH-1:0] word;
  always @(posedge clk) begin
    if (write) memory[to] <= in;
    word <= memory[from];
    out <= word;
  end
endmodule
